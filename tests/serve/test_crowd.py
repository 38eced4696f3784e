"""Minutes with a crowd: slow, impatient and hostile clients beside ordinary ones. GPT2_SOAK_MINUTES: how long."""

import os
import random
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.serve.harness import completion, post, until
from tests.serve.test_command import Process
from tests.serve.tiny import CONTEXT, tiny_folder

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    made = Process(tiny_folder(tmp_path), "--slots", "8")
    yield made
    made.process.kill()
    made.process.wait()


def address(server: Process) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def test_five_hundred_who_trickle_are_dropped_while_others_are_served(server: Process) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    began = time.monotonic()
    held = [socket.create_connection(address(server)) for _ in range(500)]
    heads = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", post(completion("x" * 400))[:-390])
    for number, connection in enumerate(held):
        connection.sendall(heads[number % 2])
        connection.setblocking(False)
    slowest, open_still, served = 0.0, set(held), 0
    with httpx.Client(base_url=server.url, trust_env=False, timeout=10) as client:
        while open_still:
            for connection in list(open_still):
                try:
                    connection.send(b"a")
                    if not connection.recv(1024):
                        open_still.discard(connection)
                except BlockingIOError:
                    pass
                except OSError:
                    open_still.discard(connection)
            asked = time.monotonic()
            response = client.post("/v1/completions", json=completion(max_tokens=4))
            assert response.status_code == 200, response.text
            slowest, served = max(slowest, time.monotonic() - asked), served + 1
            time.sleep(0.2)
        seconds = time.monotonic() - began
    print(f"500 trickling connections dropped within {seconds:.1f} s; {served} served, the slowest in {slowest:.2f} s")
    assert seconds < 30, "the deadline is what this test is about: ten seconds, and what it took to open them"
    until(lambda: gauge(server, "gpt2_connections") <= 1)


def test_a_soak_loses_nothing(server: Process) -> None:
    minutes = float(os.environ.get("GPT2_SOAK_MINUTES", "2"))
    end = time.monotonic() + minutes * 60
    counts = {"whole": 0, "disconnected": 0, "slow": 0, "refused": 0}
    lock = threading.Lock()
    wrong: list[str] = []
    httpx.get(f"{server.url}/health", trust_env=False, verify=False)
    before = descriptors(server)

    def count(what: str) -> None:
        with lock:
            counts[what] += 1

    def live(number: int) -> None:
        draw = random.Random(number)
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60, verify=False) as client:
            while time.monotonic() < end:
                try:
                    behave(client, draw)
                except Exception as error:  # noqa: BLE001 - told at the end
                    wrong.append(repr(error))

    def behave(client: httpx.Client, draw: random.Random) -> None:
        chance = draw.random()
        tokens = draw.randint(5, CONTEXT - 20)
        body = completion(
            "x" * draw.randint(0, 19), max_tokens=tokens, stream=draw.random() < 0.7, seed=draw.randint(0, 9)
        )
        if chance < 0.2:
            with socket.create_connection(address(server), timeout=60) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                connection.sendall(post(body))
                if chance < 0.1:
                    time.sleep(draw.random() * 0.05)
                    count("disconnected")
                    return
                while connection.recv(200):
                    time.sleep(0.005)
                count("slow")
        else:
            response = client.post("/v1/completions", json=body)
            if response.status_code == 429:
                count("refused")
                time.sleep(0.2)
            else:
                assert response.status_code == 200, response.text
                count("whole")

    threads = [threading.Thread(target=live, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    delays: list[float] = []
    warm: int | None = None
    with httpx.Client(base_url=server.url, trust_env=False, verify=False) as client:
        while time.monotonic() < end:
            asked = time.monotonic()
            assert client.get("/health").status_code == 200
            delays.append(time.monotonic() - asked)
            if warm is None and time.monotonic() > end - minutes * 45:
                warm = resident(server)
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    until(lambda: gauge(server, "gpt2_running") == gauge(server, "gpt2_waiting") == 0)
    until(lambda: gauge(server, "gpt2_connections") <= 1, 40)
    assert warm is not None
    grown, left = resident(server) / warm - 1, descriptors(server)
    p99 = sorted(delays)[int(len(delays) * 0.99)]
    print(
        f"{minutes:g} minutes: {counts}; memory {grown:+.1%} after a quarter, descriptors {before} → {left}, "
        f"/health p99 {p99 * 1000:.0f} ms of {len(delays):,}"
    )
    assert not wrong, wrong[:5]
    assert grown < 0.02
    assert left <= before + 2
    assert counts["disconnected"] and counts["slow"] and counts["whole"]
    assert server.end() == 0
    assert "Traceback" not in server.said and "ERROR" not in server.said


def gauge(server: Process, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", trust_env=False, verify=False).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def resident(server: Process) -> int:
    """Bytes in memory."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def descriptors(server: Process) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
