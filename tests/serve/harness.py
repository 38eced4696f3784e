"""A server in a thread of this process, and a client that can misbehave."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from gpt2.chat.template import ChatFormat
from gpt2.serve.app import build_app
from gpt2.serve.engine import Engine
from gpt2.serve.limits import Limits
from gpt2.serve.looking import Inspector
from gpt2.serve.metrics import Metrics
from gpt2.serve.model import ServedModel
from gpt2.serve.server import Server, bind
from gpt2.serve.service import Service
from gpt2.serve.worker import Worker
from tests.serve.fake import BYTES, CONTEXT, FakeEngine, FakeInspector

TEMPLATE = "Q: {question}\nA: {answer}"
MODEL = "tiny"
SECONDS = 60.0  # for what takes a tenth of one, unless others keep the machine busy


@dataclass
class Running:
    """A server that runs."""

    engine: Any
    service: Service
    server: Server
    port: int
    key: str | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, headers: Mapping[str, str] | None = None) -> httpx.Client:
        """A client that knows the key."""
        known = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(
            base_url=self.url, headers={**known, **(headers or {})}, timeout=SECONDS, trust_env=False, verify=False
        )

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A bare connection."""
        made = socket.socket()
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.settimeout(SECONDS)
        made.connect(("127.0.0.1", self.port))
        return made

    def raw(self, request: bytes) -> bytes:
        """All that the server answers to some bytes, until it closes; nothing if it closes before it has heard any."""
        try:
            connection = self.connect()
        except ConnectionResetError:
            return b""
        with connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def post(body: Any, path: str = "/v1/completions", host: str = "127.0.0.1", extra: str = "") -> bytes:
    """The bytes of a POST that closes its connection."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n{extra}\r\n"
    )
    return head.encode() + content


def completion(prompt: Any = "Once", **fields: Any) -> dict[str, Any]:
    """A body for /v1/completions."""
    return {"model": MODEL, "prompt": prompt, **fields}


def status_of(response: bytes) -> int:
    """The status of a raw response; 0 if there is none."""
    found = re.match(rb"HTTP/1.1 (\d+)", response)
    return int(found[1]) if found else 0


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(
    engine: Engine | None = None,
    *,
    key: str | None = None,
    hosts: tuple[str, ...] = (),
    template: str | None = TEMPLATE,
    turns: int | None = None,
    name: str = MODEL,
    tokenizer: Any = BYTES,
    context_length: int = CONTEXT,
    trusted_proxies: tuple[str, ...] = (),
    inspector: Inspector | None = None,
    **limits: Any,
) -> Iterator[Running]:
    """A server on a free port, until the block ends. `limits` are fields of `Limits`."""
    engine = engine or FakeEngine()
    bounds, metrics = Limits(**limits), Metrics()
    model = ServedModel(name, 1_700_000_000, tokenizer, context_length, ChatFormat.from_template(template), turns)
    worker = Worker(engine, bounds, metrics)
    service = Service(model, worker, bounds, metrics, inspector or FakeInspector())
    listener = bind("127.0.0.1", 0)
    server = Server(build_app(service, key, hosts), service, bounds, trusted_proxies)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    worker.start()
    thread.start()
    until(lambda: server.started)
    try:
        yield Running(engine, service, server, listener.getsockname()[1], key)
    finally:
        server.should_exit = server.force_exit = True
        thread.join(SECONDS)
        worker.stop()
        assert not thread.is_alive()
