"""Minutes with a crowd: clients that leave, read slowly, stop reading or send a byte a second, beside ordinary ones.

    taskset -c 1 python benchmarks/soak.py --minutes 30

First, sockets that never finish their request are opened, and dropped by the server while others are served. Then the
crowd comes: of all requests a tenth is left early, and a tenth read slowly. What is left behind is counted at the end.
Linux only. Exit code 1: something was lost or wrong, or a bound was passed; what, is said at the end.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import machine, write_section
from server import ServerProcess, make_folder

LEAVE, SLOW = 0.1, 0.1
"""Shares of requests whose client leaves early, and reads slowly."""
SLOTS = 8
PATIENCE = 120
"""Seconds that a client reads nothing; the server allows 30, once it has written more than lies in between."""
TCP_CLOSE = 7
"""The state of a connection that the other side has aborted, as Linux tells it."""
MOST_GROWTH = 0.02
"""Of the memory, from a quarter of the time to the end."""
SLOWEST_HEALTH = 0.05
"""Seconds that 99 of 100 asks for /health take at most."""
LAST_DROP = 12
"""Seconds after which no trickling socket is left; the server allows 10, and looks twice a second."""
TRICKLERS = ("127.0.0.2", "127.0.0.3")
"""Addresses of the trickling sockets: one may hold half of the server's connections."""
REQUESTS = 40
"""Different ones, so that the answers to equal ones can be compared."""


def request(body: dict[str, Any]) -> bytes:
    """The bytes of a request for a completion that closes its connection."""
    content = json.dumps({"model": "bench", **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def body_of(number: int) -> dict[str, Any]:
    """One of the different requests; every second begins as others do."""
    draw = random.Random(number)
    prompt = "Once upon a time, " * (number % 2) + " ".join(str(draw.randint(0, 99)) for _ in range(draw.randint(1, 9)))
    # The likeliest token each time: of the others one may be chosen for a difference in rounding.
    return {"prompt": prompt, "max_tokens": draw.randint(5, 60), "temperature": 0, "stream": draw.random() < 0.7}


async def connect(
    port: int, buffer: int | None = None, address: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from an address; with a buffer of so many bytes, the server feels soon that nobody reads."""
    made = socket.socket()
    made.setblocking(False)
    made.bind((address, 0))
    if buffer is not None:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=made, limit=buffer or 2**16)


def text_of(answer: bytes) -> str:
    """The text of a response, streamed or whole. Raises where it is not complete."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"event-stream" not in head:
        return json.loads(rest)["choices"][0]["text"]
    lines = [line for line in rest.split(b"\n") if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]", lines[-1]
    return "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines[:-1])


@dataclass
class Crowd:
    """Clients of all kinds, and what happened to them."""

    port: int
    end: float = 0.0
    happened: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    """Seconds that /health took."""
    texts: dict[int, str] = field(default_factory=dict)

    async def live(self, number: int) -> None:
        """One client after another, until the end."""
        draw = random.Random(number)
        while time.monotonic() < self.end:
            chance = draw.random()
            kind = self.leaving if chance < LEAVE else self.slow if chance < LEAVE + SLOW else self.ordinary
            try:
                await kind(draw)
            except Exception as error:  # noqa: BLE001 - told at the end
                self.wrong.append(f"{kind.__name__}: {error!r}")

    async def ordinary(self, draw: random.Random) -> None:
        """Asks, and reads the whole answer."""
        number = draw.randrange(REQUESTS)
        reader, writer = await connect(self.port)
        writer.write(request(body_of(number)))
        answer = await reader.read(-1)
        writer.close()
        if answer.startswith(b"HTTP/1.1 429 "):
            self.happened["refused"] += 1
            await asyncio.sleep(0.2)
            return
        text = text_of(answer)
        self.happened["answered"] += 1
        self.happened["differed"] += text != self.texts.setdefault(number, text)

    async def leaving(self, draw: random.Random) -> None:
        """Goes before the answer, in its midst, or without a word in the midst of the request."""
        reader, writer = await connect(self.port)
        content = request({**body_of(draw.randrange(REQUESTS)), "max_tokens": 60, "stream": draw.random() < 0.8})
        writer.write(content[: len(content) // 2 if draw.random() < 0.2 else None])
        await asyncio.sleep(draw.random() * 0.05)
        if draw.random() < 0.5:
            await asyncio.wait([asyncio.ensure_future(reader.read(500))], timeout=2)
        if draw.random() < 0.5:
            writer.transport.abort()
        writer.close()
        self.happened["left"] += 1

    async def slow(self, draw: random.Random) -> None:
        """Takes a large answer in small pieces."""
        reader, writer = await connect(self.port, 4096)
        writer.write(request({"prompt": "Slowly", "max_tokens": 80, "n": 2, "logprobs": 20, "stream": True}))
        last = b""
        while part := await reader.read(2048):
            last = (last + part)[-100:]
            await asyncio.sleep(0.005)
        writer.close()
        if b"[DONE]" in last:
            self.happened["read slowly"] += 1
        else:
            assert b"queue_full" in last, last
            self.happened["refused"] += 1

    async def stuck(self) -> None:
        """Now and again one who does not read at all, and is dropped."""
        while time.monotonic() < self.end - 45:
            _, writer = await connect(self.port, 4096)
            writer.write(request({"prompt": "Never", "max_tokens": 100, "n": 4, "logprobs": 20, "stream": True}))
            connection, began = writer.get_extra_info("socket"), time.monotonic()
            aborted = False
            while not aborted and time.monotonic() < began + PATIENCE:
                await asyncio.sleep(0.5)
                aborted = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE
            writer.close()
            self.happened["dropped" if aborted else "not dropped"] += 1

    async def watch(self) -> None:
        """Asks for the server's health twenty times a second."""
        while time.monotonic() < self.end:
            began = time.monotonic()
            reader, writer = await connect(self.port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read(-1)
            writer.close()
            self.health.append(time.monotonic() - began)
            if b'"ok"' not in answer:
                self.wrong.append(f"health: {answer!r}")
            await asyncio.sleep(0.05)


async def trickle(port: int, sockets: int) -> dict[str, float]:
    """Sockets that never finish their request, half in its head and half in its body, and one client beside them."""
    slow: list[float] = []

    async def hold(number: int) -> float:
        began = time.monotonic()
        reader, writer = await connect(port, address=TRICKLERS[number // 2 % len(TRICKLERS)])
        writer.write(request({"prompt": "x" * 2000})[: 40 if number % 2 else -1900])
        gone = asyncio.ensure_future(reader.read(-1))
        while not gone.done():
            writer.write(b"a")
            await asyncio.wait([gone], timeout=1)
        writer.close()
        gone.exception()
        return time.monotonic() - began

    async def ask() -> None:
        while True:
            began = time.monotonic()
            reader, writer = await connect(port)
            writer.write(request({"prompt": "x", "max_tokens": 4}))
            text_of(await reader.read(-1))
            writer.close()
            slow.append(time.monotonic() - began)

    asking = asyncio.create_task(ask())
    held = await asyncio.gather(*(hold(number) for number in range(sockets)))
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled(), asking.exception()
    return {"sockets": sockets, "dropped": max(held), "served": len(slow), "slowest": max(slow)}


async def soak(server: ServerProcess, minutes: float, clients: int) -> tuple[Crowd, int]:
    """The crowd, and the bytes that the server had in memory after a quarter of the time."""
    crowd = Crowd(server.port, time.monotonic() + minutes * 60)
    tasks = [asyncio.create_task(crowd.live(number)) for number in range(clients)]
    tasks += [asyncio.create_task(crowd.stuck()), asyncio.create_task(crowd.watch())]
    await asyncio.sleep(minutes * 15)
    warm = server.resident()
    await asyncio.gather(*tasks)
    return crowd, warm


def settle(server: ServerProcess) -> None:
    """Wait until nothing is left that will go by itself."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not server.metric("gpt2_running") + server.metric("gpt2_waiting") and server.metric("gpt2_connections") <= 1:
            return
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="time of the crowd")
    parser.add_argument("--clients", type=int, default=16, help="at once")
    parser.add_argument("--trickling", type=int, default=500, help="sockets that never finish their request")
    parser.add_argument("--preset", default="gpt2-micro", help="size of the model; its weights are random")
    parser.add_argument("--record", action="store_true", help="write the table into RESULTS.md")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with tempfile.TemporaryDirectory() as place:
        server = ServerProcess(make_folder(Path(place), arguments.preset), SLOTS, "fp32")
        try:
            server.metric("gpt2_running")
            before = server.descriptors()
            trickled = asyncio.run(trickle(server.port, arguments.trickling))
            crowd, warm = asyncio.run(soak(server, arguments.minutes, arguments.clients))
            settle(server)
            held = {name: int(server.metric(f"gpt2_{name}")) for name in ("running", "waiting")}
            written, memory, after = (
                server.metric("gpt2_generated_tokens_total"),
                server.resident(),
                server.descriptors(),
            )
        finally:
            code = server.end()
    health = sorted(crowd.health)
    median, p99 = (health[int(len(health) * part)] for part in (0.5, 0.99))
    happened = crowd.happened
    growth = memory / warm - 1
    lines = [
        f"`python benchmarks/soak.py --minutes {arguments.minutes:g}` on {machine()}.",
        f"{arguments.clients} clients at once, {SLOTS} slots, {arguments.preset} with random weights.",
        f"Clients and server share {len(os.sched_getaffinity(0))} of the machine's cores.",
        "",
        "| | |",
        "|---|---|",
        f"| answered; differing from the first answer to the same request | {happened['answered']:,}; "
        f"{happened['differed']} |",
        f"| left early; read slowly; refused (429) | {happened['left']:,}; {happened['read slowly']:,}; "
        f"{happened['refused']:,} |",
        f"| did not read: dropped; not dropped | {happened['dropped']}; {happened['not dropped']} |",
        f"| tokens written | {written:,.0f}, {written / arguments.minutes / 60:,.0f} a second |",
        f"| answers still running; waiting at the end | {held['running']}; {held['waiting']} |",
        f"| memory after a quarter; at the end | {warm / 2**20:.1f} MiB; {memory / 2**20:.1f} MiB, {growth:+.2%} |",
        f"| descriptors before; after | {before}; {after} |",
        f"| /health: median; p99; worst | {median * 1000:.1f}; "
        f"{p99 * 1000:.1f}; {health[-1] * 1000:.0f} ms of {len(health):,} |",
        f"| wrong answers; complaints in the log; exit code | {len(crowd.wrong)}; {len(server.complaints)}; {code} |",
        f"| {trickled['sockets']:,} trickling sockets: the last dropped after | {trickled['dropped']:.1f} s |",
        f"| meanwhile served; the slowest in | {trickled['served']:,}; {trickled['slowest']:.2f} s |",
    ]
    print("\n".join(lines))
    for line in [*crowd.wrong[:10], *server.complaints[:10]]:
        print(line.rstrip(), file=sys.stderr)
    if arguments.record:
        write_section("soak", "A server among bad clients", lines)
    failed = [
        what
        for what, wrong in {
            "answers run or wait that nobody asks for": any(held.values()),
            "descriptors were lost": after > before + 2,
            f"memory grew by {MOST_GROWTH:.0%} or more": growth >= MOST_GROWTH,
            f"/health took {SLOWEST_HEALTH * 1000:.0f} ms or more": p99 >= SLOWEST_HEALTH,
            f"a trickling socket lived longer than {LAST_DROP} s": trickled["dropped"] > LAST_DROP,
            "a client that does not read was not dropped": happened["not dropped"],
            "answers to the same request differ": happened["differed"],
            "answers were wrong": crowd.wrong,
            "the log complains": server.complaints,
            "the server did not end as it should": code,
        }.items()
        if wrong
    ]
    if failed:
        sys.exit("Failed: " + "; ".join(failed) + ".")


if __name__ == "__main__":
    main()
