"""Answers on their way from the engine's thread to the event loop that waits for them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable

from gpt2.generation.request import Delta
from gpt2.serve.errors import ApiError


class Answer:
    """The answers to the requests of one client's call, as they come. Lives in the event loop that made it."""

    def __init__(self, requests: int, client: str) -> None:
        self.client = client
        self.open = requests
        """Requests whose last delta has not been read yet."""
        self.failed = False
        """Whether the reader has been told of an error."""
        self.loop = asyncio.get_running_loop()
        self.hand_on: Callable[[int, Delta], bool] | None = None
        """Asked first about what comes while the reader waits: whether it has handed it on, so that nobody is woken."""
        self._events: deque[tuple[int, Delta | ApiError]] = deque()
        self._reader: asyncio.Future[None] | None = None  # who waits for an event

    async def read(self) -> tuple[int, Delta]:
        """What is new: the number of the request, counted from 0, and the delta.

        Raises:
            ApiError: one of the requests failed; none will be answered any more.
        """
        while not self._events:
            self._reader = self.loop.create_future()
            await self._reader
        index, event = self._events.popleft()
        if isinstance(event, ApiError):
            self.failed = True
            raise event
        self.open -= event.finish is not None
        return index, event

    def put(self, index: int, event: Delta | ApiError) -> None:
        """Something new; called in the event loop of this answer."""
        reader = self._reader if self._reader is not None and not self._reader.done() else None
        if reader is not None and self._handed_on(index, event):
            return
        self._events.append((index, event))
        if reader is not None:
            reader.set_result(None)

    def _handed_on(self, index: int, event: Delta | ApiError) -> bool:
        """Of who waits for it. One that has something in its hands must not be overtaken."""
        if self.hand_on is None or isinstance(event, ApiError) or event.finish is not None:
            return False
        return self.hand_on(index, event)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        while self.open:
            yield await self.read()


News = tuple[Answer, int, Delta | ApiError]
"""What has come for one of the requests of an answer."""


def deliver(news: Iterable[News]) -> None:
    """Hand news to their answers; called in the event loop of these."""
    for answer, index, event in news:
        answer.put(index, event)
