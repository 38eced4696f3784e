"""An engine without a model: it writes what it is told to, a byte a token, and can be slow, full or broken."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2.errors import ConfigError
from gpt2.generation.request import Delta, Request, Token
from gpt2.generation.stream import TextStream
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bpe:257", [bytes([byte]) for byte in range(256)])
CONTEXT = 512


def endless(request: Request) -> bytes:
    """Words chosen by the seed; more than anybody asks for."""
    draw = random.Random(request.sampling.seed if request.sampling.seed is not None else 1)
    return "".join(draw.choice(["snow ", "the ", "river ", "naïve ", "☃ ", "and "]) for _ in range(400)).encode()


@dataclass
class Writing:
    """A request on its way."""

    request: Request
    ids: bytes
    stream: TextStream
    written: int = 0


@dataclass
class FakeEngine:
    """See `gpt2.serve.worker.Engine`. Checks that only one thread comes."""

    slots: int = 4
    says: Callable[[Request], bytes] = endless
    seconds: float = 0.0
    """A step takes so long."""
    room: int = 10**9
    """Prompt tokens that there is memory for."""
    fail: Exception | None = None
    """What the next step raises."""
    alternatives: tuple[tuple[int, float], ...] = ((256, -1.5), (195, -float("inf")))
    """To each token, which itself has -0.5."""
    steps: int = 0
    seen: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    running: dict[int, Writing] = field(default_factory=dict)
    _thread: int | None = None
    _tickets: int = 0

    @property
    def active(self) -> int:
        return len(self.running)

    def admit(self, request: Request) -> int | None:
        self._same_thread()
        if b"\x00refuse" in bytes(i for i in request.prompt_ids if i < 256):
            raise ConfigError("this prompt is refused.", "")
        if len(self.running) >= self.slots or len(request.prompt_ids) > self.room:
            return None
        self.seen.append(request)
        self._tickets += 1
        self.running[self._tickets] = Writing(request, self.says(request), TextStream(request.stop))
        return self._tickets

    def step(self) -> list[tuple[int, Delta]]:
        self._same_thread()
        self.steps += 1
        if self.seconds:
            time.sleep(self.seconds)
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        news = [(ticket, self._write(writing)) for ticket, writing in self.running.items()]
        for ticket, delta in news:
            if delta.finish:
                del self.running[ticket]
        return news

    def cancel(self, ticket: int) -> None:
        self._same_thread()
        del self.running[ticket]
        self.cancelled.append(ticket)

    def _write(self, writing: Writing) -> Delta:
        request, at = writing.request, writing.written
        if at >= len(writing.ids):
            return Delta(writing.stream.end(), (), "stop")
        writing.written += 1
        byte = writing.ids[at]
        others = () if request.logprobs is None else ((byte, -0.5), *self.alternatives)
        logprob = None if request.logprobs is None else -0.5
        token = Token(byte, bytes([byte]), logprob, others[: request.logprobs])
        text = writing.stream.feed(token.bytes)
        if writing.stream.stopped:
            return Delta(text, (token,), "stop")
        if writing.written == request.max_tokens:
            return Delta(text + writing.stream.end(), (token,), "length")
        return Delta(text, (token,), None)

    def _same_thread(self) -> None:
        self._thread = self._thread or threading.get_ident()
        assert self._thread == threading.get_ident(), "two threads use the engine"


@dataclass
class FakeInspector:
    """See `gpt2.serve.looking.Inspector`. Remembers what was asked, and by which threads."""

    fail: Exception | None = None
    seconds: float = 0.0
    """A look takes so long."""
    seen: list[tuple[list[int], int]] = field(default_factory=list)
    looked: set[str] = field(default_factory=set)
    searched: set[str] = field(default_factory=set)

    def look(self, ids: Sequence[int], written: int) -> dict[str, Any]:
        self.seen.append((list(ids), written))
        self.looked.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if self.fail is not None:
            raise self.fail
        return {"layers": 0, "heads": 0, "tokens": [], "lens": [], "attention": ""}

    def origins(self, ids: Sequence[int], written: int) -> dict[str, Any] | None:
        self.searched.add(threading.current_thread().name)
        return None
