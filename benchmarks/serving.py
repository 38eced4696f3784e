"""How much of the engine's speed its clients get: 16 streams beside one, and HTTP beside the bare engine, in turn.

    python benchmarks/serving.py --precision fp32 fp16 bf16 int8

The weights are random, which costs the same. The client is one process of bare sockets, so that it takes little of
the machine that both sides share. A round is: the engine alone with 16 texts, the server with 16 clients, the server
with one.
"""

import argparse
import json
import selectors
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from results import machine, write_section
from server import ServerProcess, make_folder

from gpt2.config.presets import PRESETS
from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.request import Request, Sampling

PROMPT = 32
WARM_UP = 8
"""Tokens of the first request, which is not counted."""


class Measured(NamedTuple):
    """One way of asking, once."""

    tokens_per_second: float
    first: list[float]
    """Seconds to each client's first piece of text."""
    cpu_seconds: float
    """Of the engine's process."""


def prompts(clients: int, seed: int) -> list[list[int]]:
    """Different ones, and others with each seed, so that none can be copied from another or from one before."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(50_000, (clients, PROMPT), generator=generator).tolist()


def bare(engine: Engine, clients: int, tokens: int, seed: int) -> Measured:
    """The engine without a server."""
    ends = {engine.tokenizer.end_of_text: -100.0}
    requests = [Request(tuple(ids), tokens, Sampling(seed=1, logit_bias=ends)) for ids in prompts(clients, seed)]
    first: dict[int, float] = {}
    began, worked = time.perf_counter(), time.process_time()
    for number, _ in engine.run(requests):
        first.setdefault(number, time.perf_counter() - began)
    seconds, cpu = time.perf_counter() - began, time.process_time() - worked
    return Measured(clients * tokens / seconds, list(first.values()), cpu)


def asked(port: int, ids: list[int], tokens: int) -> socket.socket:
    """A client that has asked for a stream."""
    body = {"model": "bench", "prompt": ids, "max_tokens": tokens, "stream": True, "seed": 1}
    options = {"stream_options": {"include_usage": True}, "logit_bias": {"50256": -100}}
    content = json.dumps({**body, **options}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return client


def served(server: ServerProcess, clients: int, tokens: int, seed: int) -> Measured:
    """Streaming clients, all at once."""
    began, worked = time.perf_counter(), server.cpu_seconds()
    first: dict[int, float] = {}
    texts: dict[int, list[bytes]] = {}
    with selectors.DefaultSelector() as selector:
        for number, ids in enumerate(prompts(clients, seed)):
            selector.register(asked(server.port, ids, tokens), selectors.EVENT_READ, number)
            texts[number] = []
        while selector.get_map():
            for key, _ in selector.select():
                part = key.fileobj.recv(65536)  # type: ignore[union-attr]
                if b"data: {" in part:
                    first.setdefault(key.data, time.perf_counter() - began)
                texts[key.data].append(part)
                if not part:
                    selector.unregister(key.fileobj).fileobj.close()  # type: ignore[union-attr]
    seconds, cpu = time.perf_counter() - began, server.cpu_seconds() - worked
    for text in texts.values():
        usage = b"".join(text).rsplit(b'"completion_tokens":', 1)[1]
        assert int(usage.split(b",")[0]) == tokens, "a client got fewer tokens than it asked for"
    return Measured(clients * tokens / seconds, list(first.values()), cpu)


def measure(preset: str, precision: str, clients: int, tokens: int, rounds: int) -> list[dict[str, Measured]]:
    """All rounds: the engine alone, the server with many clients, and with one."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_folder(Path(place), preset)
        server = ServerProcess(folder, clients, precision)
        try:
            engine = open_engine(folder, torch.device("cpu"), precision, clients)
            bare(engine, clients, WARM_UP, 0)
            served(server, clients, WARM_UP, 0)
            taken = []
            for number in range(rounds):
                taken.append(
                    {
                        "engine": bare(engine, clients, tokens, 2 * number + 1),
                        "many": served(server, clients, tokens, 2 * number + 1),
                        "one": served(server, 1, tokens, 2 * number + 2),
                    }
                )
                speeds = "  ".join(f"{name} {one.tokens_per_second:8.1f}" for name, one in taken[-1].items())
                print(f"round {number + 1}: {speeds}  tokens/s", file=sys.stderr)
            return taken
        finally:
            server.end()


def table(taken: list[dict[str, Measured]], clients: int) -> list[str]:
    """All rounds of one precision, and their medians."""
    lines = [
        f"| round | engine alone, {clients} texts | server, {clients} clients | one client | {clients} to 1 "
        f"| server to engine | CPU: engine alone | CPU: server | first token, p95 of {clients} | of one |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, one in enumerate(taken, 1):
        engine, many, single = one["engine"], one["many"], one["one"]
        first = sorted(many.first)[int(clients * 0.95)]
        lines.append(
            f"| {number} | {engine.tokens_per_second:,.0f} | {many.tokens_per_second:,.0f} "
            f"| {single.tokens_per_second:,.0f} | {many.tokens_per_second / single.tokens_per_second:.2f} "
            f"| {many.tokens_per_second / engine.tokens_per_second:.3f} | {engine.cpu_seconds:.2f} "
            f"| {many.cpu_seconds:.2f} | {first:.2f} | {single.first[0]:.3f} |"
        )
    ratio = statistics.median(one["many"].tokens_per_second / one["one"].tokens_per_second for one in taken)
    share = statistics.median(one["many"].tokens_per_second / one["engine"].tokens_per_second for one in taken)
    work = statistics.median(one["many"].cpu_seconds / one["engine"].cpu_seconds for one in taken)
    return [
        *lines,
        "",
        f"Medians: {clients} clients get **{ratio:.2f}** times what one gets, {share:.1%} of the bare engine; "
        f"the server works {work:.3f} times as much.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2", choices=sorted(PRESETS), help="size of the model")
    parser.add_argument("--clients", type=int, default=16, help="streaming clients, and slots of the server")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=5, help="times that all is measured")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32"], help="of the weights: some of fp32, fp16, bf16, int8 and auto"
    )
    parser.add_argument("--record", action="store_true", help="write the tables into RESULTS.md")
    arguments = parser.parse_args()
    preset, precisions, clients, tokens = arguments.preset, arguments.precision, arguments.clients, arguments.tokens
    lines = [
        f"`python benchmarks/serving.py --preset {preset} --precision {' '.join(precisions)}` on {machine()}.",
        f"{clients} streaming clients; {PROMPT} tokens read and {tokens} written for each. Clients, server and engine",
        "share the machine. Tokens a second; seconds to the first token; CPU seconds of the process with the engine.",
    ]
    for precision in precisions:
        taken = measure(preset, precision, clients, tokens, arguments.rounds)
        lines += ["", f"### {precision}", "", *table(taken, clients)]
    print("\n".join(lines))
    if arguments.record:
        write_section("serving", "A server and its clients", lines)


if __name__ == "__main__":
    main()
