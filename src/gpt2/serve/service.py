"""What the routes share: reading a body, having it answered, and giving up when the client goes."""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gpt2.serve.asking import Asked
from gpt2.serve.errors import ApiError, from_validation
from gpt2.serve.limits import Limits
from gpt2.serve.looking import Inspector, Looks
from gpt2.serve.metrics import Metrics
from gpt2.serve.model import ServedModel
from gpt2.serve.responses import Health, ModelCard
from gpt2.serve.schemas import Drawn, LookRequest
from gpt2.serve.worker import Worker
from gpt2.serve.writers import Writer

T = TypeVar("T")
Body = TypeVar("Body", bound=Drawn)

WRITE = "gpt2.write"
"""Where a scope may have a function that sends a piece of its response at once, or says that it cannot now."""
PART = 2**16
"""Bytes of a whole response that are sent at once: who takes fewer in `write_seconds` counts as taking nothing."""


class Service:
    """What the routes share.

    Args:
        model: the one that is served.
        worker: who writes.
        limits: of bodies.
        metrics: where is counted what is done.
        inspector: looks into the model.
    """

    def __init__(
        self, model: ServedModel, worker: Worker, limits: Limits, metrics: Metrics, inspector: Inspector
    ) -> None:
        self.model = model
        self.worker = worker
        self.limits = limits
        self.metrics = metrics
        self._looks = Looks(inspector, worker)
        self.draining = False
        """Whether the server is about to end: nothing new is begun."""

    @property
    def status(self) -> Health:
        """How the server is."""
        return Health(status="draining" if self.draining or self.worker.failed else "ok")

    def card(self) -> ModelCard:
        """What there is to know about the model."""
        model = self.model
        return ModelCard(
            id=model.id,
            created=model.created,
            context_length=model.context_length,
            answers=model.format.answers,
            turns=model.turns,
        )

    async def read(self, request: Request, schema: type[Body]) -> Body:
        """The body of a request, checked.

        Raises:
            ApiError: there is no room for it, or it is no JSON, too large, not what the schema says, or names another
                model.
        """
        self.worker.check_room(_client(request))
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "The body must be JSON: Content-Type: application/json.", code="invalid_content_type")
        most = self.limits.body_bytes
        too_large = ApiError(
            413, f"The body has more than {most:,} bytes.", None, "body_too_large", {"Connection": "close"}
        )
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            raise too_large
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large
            parts.append(part)
        try:
            body = schema.model_validate_json(b"".join(parts))
        except ValidationError as error:
            raise from_validation(error) from None
        self.check_model(body.model)
        return body

    def check_model(self, name: str) -> None:
        """Refuse any model but ours.

        Raises:
            ApiError: 404.
        """
        if name != self.model.id:
            raise ApiError(404, f"This server has one model: {self.model.id}.", "model", "model_not_found")

    async def answer(self, request: Request, asked: Asked, writer: Writer, stream: bool) -> Response:
        """Have the requests answered, and respond: whole, or in pieces as they come.

        Raises:
            ApiError: they cannot be answered.
            ClientDisconnect: the client has gone.
        """
        began = time.monotonic()
        answer = self.worker.submit(asked.requests, _client(request))
        self.metrics.read.inc(asked.prompt_tokens)
        give_up = functools.partial(self.worker.cancel, answer)
        try:
            if not stream:
                return as_json(await _unless_gone(request, writer.collect(answer)))
            # Only when the first piece is there it is certain that there will be an answer, and no error.
            first = await _unless_gone(request, answer.read())
            self.metrics.first_token.observe(time.monotonic() - began)
            return Pieces(writer.stream(first, answer, request.scope.get(WRITE)), give_up)
        except BaseException:
            give_up()
            raise

    async def look(self, request: Request, body: LookRequest, ids: list[int], written: int) -> Response:
        """Look into the model, and respond.

        Raises:
            ApiError: there is no room for it, or it failed.
            ClientDisconnect: the client has gone.
        """
        client = _client(request)
        self._looks.begin(client)
        try:
            content = await _unless_gone(request, self._looks.look(body, ids, written, client))
        except BaseException:
            self._looks.end(client)
            raise
        return Whole(content, done=functools.partial(self._looks.end, client))


class Whole(Response):
    """JSON that is there. It is sent a part at a time, so that whoever takes it steadily is seen to do so.

    However it ends, `done` is called.
    """

    media_type = "application/json"

    def __init__(self, content: str | bytes, status: int = 200, done: Callable[[], None] = lambda: None) -> None:
        super().__init__(content, status)
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts, each when the one before is taken."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for begin in range(0, len(self.body), PART):
                part = self.body[begin : begin + PART]
                await send({"type": "http.response.body", "body": part, "more_body": begin + PART < len(self.body)})
        finally:
            self._done()


class Pieces(StreamingResponse):
    """A stream of events, sent as they come. However it ends, `done` is called."""

    def __init__(self, events: AsyncIterator[bytes], done: Callable[[], None]) -> None:
        # The header is for nginx, which would else collect pieces before it hands them on.
        super().__init__(events, headers={"X-Accel-Buffering": "no"}, media_type="text/event-stream")
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces, until they end or the client goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._done()


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, unless the client goes first.

    Raises:
        ClientDisconnect: it has.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientDisconnect
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _client(request: Request) -> str:
    return request.client.host if request.client else "?"


def as_json(content: BaseModel, status: int = 200) -> Response:
    """A response of JSON."""
    return Whole(content.model_dump_json(), status)
