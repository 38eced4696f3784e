"""Work on the model other than writing: a callable that the engine's thread runs between two steps."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False, slots=True)
class Task:
    """A callable on its way to the engine's thread, and its result on the way back."""

    work: Callable[[], Any]
    client: str
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    result: Future[Any] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Hand an error back, unless nobody waits for it any more."""
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)
