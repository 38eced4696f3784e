"""How much of the engine's speed its clients get: 16 streams beside one, and HTTP beside the bare engine, in turn.

    python benchmarks/serving.py --preset gpt2 --rounds 3

The weights are random, which costs the same. The client is one process of bare sockets, so that it takes little of
the machine that both sides share. A round is: the engine alone with 16 texts, the server with 16 clients, the server
with one.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from gpt2.config.presets import PRESETS
from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.request import Request, Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.weights.huggingface import to_files

PROMPT = 32
WARM_UP = 8
"""Tokens of the first request, which is not counted."""


class Measured(NamedTuple):
    """One way of asking, once."""

    tokens_per_second: float
    first: list[float]
    """Seconds to each client's first piece of text."""


def prompts(clients: int) -> list[list[int]]:
    """Different ones, so that none can be copied from another."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(50_000, (clients, PROMPT), generator=generator).tolist()


def bare(engine: Engine, clients: int, tokens: int) -> Measured:
    """The engine without a server."""
    ends = {engine.tokenizer.end_of_text: -100.0}
    requests = [Request(tuple(ids), tokens, Sampling(seed=1, logit_bias=ends)) for ids in prompts(clients)]
    first: dict[int, float] = {}
    began = time.perf_counter()
    for number, _ in engine.run(requests):
        first.setdefault(number, time.perf_counter() - began)
    return Measured(clients * tokens / (time.perf_counter() - began), list(first.values()))


async def stream(port: int, ids: list[int], tokens: int) -> tuple[float, int]:
    """One client: seconds to its first piece, and tokens in all."""
    body = {"model": "bench", "prompt": ids, "max_tokens": tokens, "stream": True, "seed": 1}
    options = {"stream_options": {"include_usage": True}, "logit_bias": {"50256": -100}}
    content = json.dumps({**body, **options}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    first, last = None, b""
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - began
            last = line
    writer.close()
    assert first is not None, "the server refused"
    return first, json.loads(last.removeprefix(b"data: "))["usage"]["completion_tokens"]


async def served(port: int, clients: int, tokens: int) -> Measured:
    """Streaming clients, all at once."""
    began = time.perf_counter()
    results = await asyncio.gather(*(stream(port, ids, tokens) for ids in prompts(clients)))
    written = sum(count for _, count in results)
    assert written == clients * tokens, f"{written} tokens of {clients * tokens}"
    return Measured(written / (time.perf_counter() - began), [first for first, _ in results])


def make_folder(folder: Path, preset: str) -> Path:
    """A model of a named size with random weights, and GPT-2's tokenizer."""
    tokenizer = gpt2_tokenizer()
    model = GPT2(GPT2Config(tokenizer.vocab_size, **PRESETS[preset]._asdict()))
    model.init_weights(torch.Generator().manual_seed(1))
    config, generation, tensors = to_files(model, tokenizer.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **tokenizer.to_files(1024)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class ServerProcess:
    """`gpt2 serve` on a free port."""

    def __init__(self, folder: Path, slots: int, precision: str) -> None:
        words = [str(folder), "--port", "0", "--slots", str(slots), "--name", "bench", "--precision", precision]
        command = [sys.executable, "-m", "gpt2", "serve", *words]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        said = ""
        while "Stop with" not in said:
            line = self.process.stderr.readline()
            assert line, f"the server did not start:\n{said}"
            said += line
        self.port = int(said.split("http://127.0.0.1:")[1].split("/")[0])
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and what they come to."""
    clients, tokens = arguments.clients, arguments.tokens
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place), arguments.preset)
        server = ServerProcess(folder, clients, arguments.precision)
        try:
            engine = open_engine(folder, torch.device("cpu"), arguments.precision, clients)
            bare(engine, clients, WARM_UP)
            asyncio.run(served(server.port, clients, WARM_UP))
            rounds = []
            for number in range(arguments.rounds):
                taken = {
                    "engine": bare(engine, clients, tokens),
                    "many": asyncio.run(served(server.port, clients, tokens)),
                    "one": asyncio.run(served(server.port, 1, tokens)),
                }
                rounds.append(taken)
                speeds = "  ".join(f"{name} {measured.tokens_per_second:8.1f}" for name, measured in taken.items())
                print(f"round {number + 1}: {speeds}  tokens/s", file=sys.stderr)
        finally:
            server.end()
    speed = {name: statistics.median(one[name].tokens_per_second for one in rounds) for name in rounds[0]}
    first = sorted(seconds for one in rounds for seconds in one["many"].first)
    ratio = statistics.median(one["many"].tokens_per_second / one["one"].tokens_per_second for one in rounds)
    overhead = statistics.median(1 - one["many"].tokens_per_second / one["engine"].tokens_per_second for one in rounds)
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "model": f"{arguments.preset}, {arguments.precision}",
        "clients": clients,
        "tokens": f"{PROMPT} read, {tokens} written, each",
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "many_to_one": round(ratio, 2),
        "http_overhead": round(overhead, 4),
        "first_token_p95_seconds": round(first[int(len(first) * 0.95)], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2", choices=sorted(PRESETS), help="size of the model")
    parser.add_argument("--clients", type=int, default=16, help="streaming clients, and slots of the server")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured")
    parser.add_argument("--precision", default="fp32", help="of the weights: fp32, bf16, int8 or auto")
    print(json.dumps(run(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
