"""What is on its way to the engine's thread: requests to write, and other work on the model."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gpt2.generation.request import Request
from gpt2.serve.answer import Answer


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way."""

    request: Request
    answer: Answer
    index: int
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    ticket: int | None = None


@dataclass(eq=False, slots=True)
class Task:
    """A callable, run between two steps, on its way to the engine's thread, and its result on the way back."""

    work: Callable[[], Any]
    client: str
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    result: Future[Any] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Hand an error back, unless nobody waits for it any more."""
        if self.result.set_running_or_notify_cancel():
            self.result.set_exception(error)
