"""Signals, from Ctrl-C to a closed terminal, as a wish to stop after the current step; a second one ends at once."""

import os
import signal
from types import FrameType, TracebackType

from gpt2.signals import SIGNALS


class StopRequest:
    """While the block runs, the first of the signals sets `received`; the second has its usual effect.

    Under torchrun a second one is not listened to: it passes on to its workers what they have heard themselves, and
    kills them anyway if they take longer than its shutdown timeout.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup asked for that, or a shell that put the command into the background
            self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
