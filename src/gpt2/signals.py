"""Ctrl-C and its like around a command: nothing is lost while programs are imported, so they end the process at once.

An exception would do harm there: numpy takes a KeyboardInterrupt in its import for a broken installation, or for
nothing at all.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
"""From Ctrl-C to a closed terminal; SIGUSR1 is a batch system's warning."""


class Signalled(SystemExit):
    """Any but Ctrl-C, where nothing else listens to it: leaves as Ctrl-C does, with 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


def end_at_once() -> dict[int, object]:
    """Let each signal say so and end the process, from now on; one that is ignored, as under nohup, stays so.

    Returns:
        the handlers before.
    """
    before: dict[int, object] = {}
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, _end)
    return before


def leave(code: int) -> NoReturn:
    """End this process without taking Python apart.

    What was interrupted may still run in a thread, and that ended a server that was opening by SIGSEGV.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def answered() -> Iterator[Callable[[], None]]:
    """Around a command: signals end the process at once, until the function that is given was called.

    From then on they are exceptions: KeyboardInterrupt, and `Signalled`. One of several processes that compute together
    dies of all but Ctrl-C without a word: it may be waiting for another, where no exception reaches it.
    """
    before = end_at_once()

    def imported() -> None:
        together = "WORLD_SIZE" in os.environ
        for number in before:
            raised = signal.default_int_handler if number == signal.SIGINT else _raise
            signal.signal(number, signal.SIG_DFL if together and number != signal.SIGINT else raised)

    try:
        yield imported
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _end(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"Stopped.\n")  # no printing: the signal may have come in the middle of one
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)
