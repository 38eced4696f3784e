"""What the server asks of an engine, so that it knows neither PyTorch nor a model."""

from collections.abc import Sequence
from typing import Protocol

from gpt2.errors import UserError
from gpt2.generation.request import Delta, Request


class Engine(Protocol):
    """What is asked of an engine; all of it from one thread."""

    @property
    def slots(self) -> int:
        """Requests that can be answered at once."""
        ...

    def admit(self, request: Request) -> int | None:
        """A ticket for a request, its memory reserved; None: there is no room now."""
        ...

    def step(self) -> Sequence[tuple[int, Delta | UserError]]:
        """Write a token of every request, or several: ticket and what is new, token by token, or why it ended."""
        ...

    def cancel(self, ticket: int) -> None:
        """Give up a request; its place is free at once. One that has ended is ignored."""
        ...
