"""Checkpoints written while training goes on: one at a time, on a thread of its own."""

import threading
from collections.abc import Callable

from gpt2.training.metrics import Record


class Saver:
    """Does one piece of writing at a time, in the background; among the trackers, it reports at each step.

    Args:
        failed: hears of each error, whatever it is, from the thread that trains, when it next asks.
    """

    def __init__(self, failed: Callable[[str, BaseException], None]) -> None:
        self._failed = failed
        self._thread: threading.Thread | None = None
        self._name = ""
        self._error: BaseException | None = None

    def submit(self, name: str, work: Callable[[], object]) -> None:
        """Begin to write, after what was begun before has ended.

        Args:
            name: what it is, for the message if it fails.
            work: must hold copies of all that it writes.
        """
        self.settle()
        self._name = name

        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - carried over to the training thread, which says it
                self._error = error

        # A daemon: a second Ctrl-C ends the program at once; what was half written has no manifest and is swept away.
        self._thread = threading.Thread(target=guarded, name="checkpoint", daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        """At each step: report how the last writing ended, if it has; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.settle()

    def settle(self) -> None:
        """Wait for what is being written, and report how it ended."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._failed(self._name, error)
