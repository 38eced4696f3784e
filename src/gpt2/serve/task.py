"""What is on its way to the engine's thread: requests to write, and other work on the model."""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from gpt2.generation.request import Delta, Request
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
    held: list[Delta] = field(default_factory=list)
    """What was written, and its reader has not been told of yet."""
    told: float = -math.inf
    """When the reader was last told of something."""

    def take(self) -> Delta:
        """All that is held, as one: there is something. Its reader is told of it now."""
        held, self.held, self.told = self.held, [], time.monotonic()
        if len(held) == 1:
            return held[0]
        tokens = tuple(token for delta in held for token in delta.tokens)
        return Delta("".join(delta.text for delta in held), tokens, held[-1].finish)


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
