"""HTTP with deadlines: uvicorn's protocol, which by itself waits for slow writers and slow readers without end."""

import functools
import json
import time
from collections import Counter
from socket import IPPROTO_TCP, SO_LINGER, SO_SNDBUF, SOL_SOCKET, TCP_NODELAY
from struct import pack
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from gpt2.serve.limits import Limits
from gpt2.serve.metrics import Metrics
from gpt2.serve.service import WRITE

SEND_BUFFER = 64 * 2**10
"""Bytes that the system may hold for a reader: so that one who has stopped reading is noticed soon."""


class BoundedProtocol(H11Protocol):
    """One connection. `sweep` is called now and then, and drops it if its client is too slow.

    Args:
        limits: how many there may be, and how slow.
        metrics: where is counted what is dropped.
        held: address → its open connections, of all connections of a server.
        share: connections that one address may hold.
        arguments: uvicorn's, as are those that are named.
    """

    def __init__(
        self, limits: Limits, metrics: Metrics, held: Counter[str], share: int, *arguments: Any, **named: Any
    ) -> None:
        super().__init__(*arguments, **named)
        self.access_log = False  # the gate writes a line, without the query
        self._limits = limits
        self._metrics = metrics
        self._held = held
        self._share = share
        self._receiving_since: float | None = None
        self._blocked_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has come."""
        super().connection_made(transport)
        self._metrics.connections.inc()
        self._held[self._address] += 1
        if len(self.connections) > self._limits.connections or self._held[self._address] > self._share:
            self._drop("too many")
            return
        self._receiving_since = time.monotonic()
        # With no buffer of its own, "paused" means that the reader has not taken all of the last piece.
        transport.set_write_buffer_limits(high=0)
        if (socket := transport.get_extra_info("socket")) is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
            # Else a piece would wait up to 40 ms for the acknowledgement of the one before.
            socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)

    def handle_events(self) -> None:
        """What has come, up to a request that can be answered."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self.cycle is not None and self.cycle.scope["http_version"] == "1.1":
            scope: Any = self.cycle.scope
            scope[WRITE] = functools.partial(self._write, self.cycle)

    def _write(self, cycle: RequestResponseCycle, piece: bytes) -> bool:
        """Send a piece of a response that has begun, unless the one before is not taken yet.

        All that a message between an application and h11 costs is a third of a token's work; this is its chunk.
        """
        if self.flow.write_paused or cycle.disconnected or cycle.response_complete:
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone, or was dropped."""
        super().connection_lost(exc)
        self._metrics.connections.dec()
        self._held[self._address] -= 1
        if not self._held[self._address]:
            del self._held[self._address]

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        super().data_received(data)
        self._set_clock()
        if self._is_idle and self.cycle is not None and self.cycle.response_complete:
            # The rest of a request that was answered by its head: the time until the next one begins here.
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """An answer has been written. Of the next request there may be something already (pipelining)."""
        super().on_response_complete()
        self._set_clock()

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else "?"

    @property
    def _is_idle(self) -> bool:
        """Whether not a byte of a request is there that has not been answered."""
        return self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _set_clock(self) -> None:
        """Let the clock of a request run while some of it has come, and not all."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY) or self._is_idle:
            self._receiving_since = None
        elif self._receiving_since is None:
            self._receiving_since = time.monotonic()

    def pause_writing(self) -> None:
        """The reader has not taken the last piece yet."""
        super().pause_writing()
        self._blocked_since = time.monotonic()

    def resume_writing(self) -> None:
        """The reader has taken it."""
        super().resume_writing()
        self._blocked_since = None

    def send_400_response(self, msg: str) -> None:
        """A request that is no HTTP, or whose head is too long: said in the shape of all errors."""
        error = {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_http"}
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            self.transport.write(self.conn.send(response) or b"")
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
        self.transport.close()

    @property
    def busy(self) -> bool:
        """Whether a request has been let in whose body is still coming, or whose answer is not all taken yet."""
        return self._blocked_since is not None or (self.cycle is not None and not self.cycle.response_complete)

    def sweep(self, now: float) -> None:
        """Drop the connection if its client is too slow."""
        if self._receiving_since is not None and now - self._receiving_since > self._limits.receive_seconds:
            self._drop("slow to send")
        elif self._blocked_since is not None and now - self._blocked_since > self._limits.write_seconds:
            self._drop("slow to read")

    def cut(self) -> None:
        """End the connection now; a request without an answer would else get a 500 from uvicorn, when its task ends."""
        self.transport.abort()

    def _drop(self, reason: str) -> None:
        self._metrics.dropped.labels(reason).inc()
        self._receiving_since = self._blocked_since = None
        if (socket := self.transport.get_extra_info("socket")) is not None:
            # Else the system would keep for minutes what the client has not taken.
            socket.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", 1, 0))
        self.transport.abort()
