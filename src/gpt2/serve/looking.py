"""Looks inside for clients: the engine's thread runs the model, another one searches the training text."""

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from gpt2.serve.errors import ApiError
from gpt2.serve.limits import MOST_LOOKS, MOST_LOOKS_OF_ONE
from gpt2.serve.schemas import LookRequest
from gpt2.serve.worker import Worker


class Inspector(Protocol):
    """Who can look into the model."""

    def look(self, ids: Sequence[int], written: int) -> dict[str, Any]:
        """What the model makes of a text (`gpt2.inspection.view.look`). Runs the model."""
        ...

    def origins(self, ids: Sequence[int], written: int) -> dict[str, Any] | None:
        """Where the text comes from (`gpt2.inspection.view.origins`); None: the training text is not at hand.

        Does not touch the model. Reads the whole training text.
        """
        ...


class Looks:
    """The looks of all clients.

    Args:
        inspector: looks.
        worker: owns the engine.
    """

    def __init__(self, inspector: Inspector, worker: Worker) -> None:
        self._inspector = inspector
        self._worker = worker
        self._running: Counter[str] = Counter()  # client → looks
        # One thread: searches read the same text, and a client that asks again and again waits for itself.
        self._searcher = ThreadPoolExecutor(1, thread_name_prefix="origins")

    def begin(self, client: str) -> None:
        """Take a place; whoever has one gives it back by `end`.

        Raises:
            ApiError: 429, none is free, or the client has its share.
        """
        if self._running.total() >= MOST_LOOKS or self._running.get(client, 0) >= MOST_LOOKS_OF_ONE:
            again = {"Retry-After": "5"}
            raise ApiError(429, "Too many looks inside at once. Try again in 5 s.", None, "queue_full", again)
        self._running[client] += 1

    def end(self, client: str) -> None:
        """Give a place back."""
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    async def look(self, body: LookRequest, ids: Sequence[int], written: int, client: str) -> bytes:
        """The response to a request, JSON.

        Args:
            body: what was asked.
            ids: its text.
            written: how many of the last ids the model wrote.
            client: who asks.

        Raises:
            ApiError: too many are waiting, or it failed.
        """
        view = await self._worker.run(functools.partial(self._inspector.look, ids, written), client)
        view["sampling"] = {
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_k": body.top_k or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
        }

        def finish() -> bytes:
            view["origins"] = self._inspector.origins(ids, written)
            return json.dumps(view, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

        return await asyncio.get_running_loop().run_in_executor(self._searcher, finish)
