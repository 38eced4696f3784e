"""The door of the server: who may come in, in which shape, and what is written down about it.

Everything that can be decided by the head of a request is decided here, before a byte of its body is read.
"""

import asyncio
import hmac
import ipaddress
import logging
import time
import uuid
from collections.abc import Callable, Collection
from urllib.parse import quote, urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2.serve.errors import ApiError, describe
from gpt2.serve.limits import Limits
from gpt2.serve.metrics import Metrics
from gpt2.serve.page import PAGE

log = logging.getLogger("gpt2.serve")

OPEN = frozenset({"/health", *PAGE})
"""Paths that need no key: nothing about the model or its users can be learned from them."""
QUIET = frozenset({"/health", "/metrics"})
"""Paths that watchers ask for every few seconds: not written down."""
CLOSE = {"Connection": "close"}
LOCAL_NAMES = ("localhost",)
CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SECURITY_HEADERS = [
    (
        b"content-security-policy",
        CONTENT_SECURITY_POLICY,
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Gate:
    """ASGI middleware around the application.

    Args:
        app: what is behind the door.
        key: what clients must know; None: nothing.
        hosts: names that the server is called by, besides localhost and IP addresses.
        limits: of the head of a request.
        metrics: where is counted what came.
        draining: whether the server is about to end.
    """

    def __init__(
        self,
        app: ASGIApp,
        key: str | None,
        hosts: Collection[str],
        limits: Limits,
        metrics: Metrics,
        draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._hosts = {name.lower() for name in (*LOCAL_NAMES, *hosts)}
        self._limits = limits
        self._metrics = metrics
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it here."""
        if scope["type"] != "http":
            return
        began = time.monotonic()
        request_id = uuid.uuid4().hex
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [*SECURITY_HEADERS, (b"x-request-id", request_id.encode())]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        try:
            self._check(scope)
            # The engine keeps its own deadline; this one is for whoever reads a byte now and then.
            async with asyncio.timeout(self._limits.answer_seconds + self._limits.write_seconds):
                await self._app(scope, receive, sending)
        except ApiError as error:
            await respond(error, sending)
        except ClientDisconnect:
            status = 499
        except TimeoutError:
            if status == 0:
                await respond(ApiError(503, "The answer took too long.", code="timeout", headers=CLOSE), sending)
            else:
                status = 499  # what is left of the answer is not sent; the connection is closed
        except Exception as error:  # noqa: BLE001 - the application has answered with a 500 without details
            log.error("request %s: %s", request_id, describe(error))
            if status == 0:
                await respond(ApiError(500, f"The server failed; request {request_id}."), sending)
        finally:
            self._write_down(scope, status or 499, time.monotonic() - began, request_id)

    def _check(self, scope: Scope) -> None:
        """Refuse what may not come in.

        Raises:
            ApiError: it may not.
        """
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        size = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(name) + len(value) for name, value in raw)
        if len(raw) > self._limits.headers or size > self._limits.header_bytes:
            raise ApiError(431, "The request has too many headers, or too long ones.", None, "headers_too_large", CLOSE)
        headers = dict(raw)
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._is_known(host) or sum(name == b"host" for name, _ in raw) != 1:
            raise ApiError(
                400,
                "This server is not known by this Host. Its names are set with --allowed-hosts.",
                code="unknown_host",
            )
        origin = headers.get(b"origin")
        if origin is not None and not _is_of(origin.decode("latin-1"), host):
            raise ApiError(403, "Pages of other sites may not use this server.", code="foreign_origin")
        if scope["path"] not in OPEN and self._key is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.lstrip(b" "), self._key) or scheme.lower() != b"bearer":
                challenge = {"WWW-Authenticate": "Bearer"}
                raise ApiError(401, "A valid key is needed: Authorization: Bearer KEY.", None, "invalid_key", challenge)
        if self._draining() and scope["path"] not in QUIET:
            again = {"Retry-After": "5", **CLOSE}
            raise ApiError(503, "The server is shutting down.", None, "shutting_down", again)

    def _is_known(self, host: str) -> bool:
        """Whether a Host header names this server: by a name, or by an IP address, which no foreign page can take."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._hosts
        return True

    def _write_down(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        """A line about a request: never its body, and no character of its path that could move a cursor."""
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.requests.labels(route, str(status)).inc()
        if scope["path"] in QUIET:
            return
        self._metrics.seconds.observe(seconds)
        client = (scope.get("client") or ("?",))[0]
        path = quote(scope["path"])[:200]
        log.info("%s %s %s %d %.3fs %s", client, scope["method"], path, status, seconds, request_id)


def _is_of(origin: str, host: str) -> bool:
    """Whether an Origin header names a host, port included."""
    return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


async def respond(error: ApiError, send: Send) -> None:
    """Send an error as a response."""
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
