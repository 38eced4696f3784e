"""The process around the application: its port, its deadlines, and how it ends."""

import functools
import logging
import socket
import time
from collections import Counter
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gpt2.errors import ConfigError
from gpt2.serve.errors import ApiError
from gpt2.serve.limits import Limits
from gpt2.serve.protocol import BoundedProtocol
from gpt2.serve.service import Service

TICKS_TO_SWEEP = 5
"""uvicorn ticks ten times a second; twice a second is soon enough to look for slow clients."""
LAST_SECONDS = 3
"""For the last bytes, when all answers have ended."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on this address: so a port that is taken is known before a model is loaded.

    Who comes meanwhile waits.

    Raises:
        ConfigError: the port is taken, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)  # SO_REUSEADDR lets two processes bind, but only one listen
    except OSError as error:
        made.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror}.",
            "Choose another --port (0: any that is free), or stop what holds this one.",
        ) from None
    return made


class Server(uvicorn.Server):
    """uvicorn, with deadlines, and with an end at which running answers are finished and new requests hear 503."""

    def __init__(self, app: ASGIApp, service: Service, limits: Limits, trusted_proxies: tuple[str, ...] = ()) -> None:
        # Behind a proxy all come from its address, and it is the proxy that bounds each.
        share = limits.connections if trusted_proxies else limits.connections_of_one
        protocol: Any = functools.partial(BoundedProtocol, limits, service.metrics, Counter(), share)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=list(trusted_proxies),
                timeout_keep_alive=limits.idle_seconds,
                timeout_graceful_shutdown=LAST_SECONDS,
                h11_max_incomplete_event_size=limits.header_bytes,
            )
        )
        self._service = service
        self._limits = limits
        self._draining_since: float | None = None

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: drop slow clients, and see whether the end has come."""
        if counter % TICKS_TO_SWEEP == 0:
            now = time.monotonic()
            for connection in self._connections:
                connection.sweep(now)
        if self.force_exit:
            for connection in self._connections:
                connection.cut()
        if self._service.worker.failed:
            self.should_exit = True  # whoever watches over the process starts a new one
        if self._draining_since is not None and not self.should_exit:
            late = time.monotonic() - self._draining_since > self._limits.drain_seconds
            if late:
                self._service.worker.abort(ApiError(503, "The server is shutting down.", code="shutting_down"))
            waits = self._service.worker.outstanding or any(one.busy for one in self._connections)
            self.should_exit = late or not waits
        return await super().on_tick(counter)

    @property
    def _connections(self) -> list[BoundedProtocol]:
        return [one for one in self.server_state.connections if isinstance(one, BoundedProtocol)]

    def drain(self) -> None:
        """Begin nothing new; end when what runs has ended, or after `drain_seconds`."""
        self._service.draining = True
        self._draining_since = self._draining_since or time.monotonic()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM and Ctrl-C drain; the second one ends at once."""
        if self._draining_since is None:
            self.drain()
        else:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # answers that end here are no failures
            self._captured_signals.append(sig)  # and so it ends the process: answers were cut off
