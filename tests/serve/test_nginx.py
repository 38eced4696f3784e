"""The documented nginx configuration, in the real nginx, before two servers."""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.serve.fake import FakeEngine
from tests.serve.harness import Running, completion, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")]

CONFIGURATION = Path(__file__).parents[2] / "docs" / "serving" / "nginx.conf"
NAME = "models.example.org"


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


@pytest.fixture
def servers() -> Iterator[tuple[Running, Running]]:
    options = {"hosts": (NAME,), "trusted_proxies": ("127.0.0.1",), "queue": 4}
    with (
        serving(FakeEngine(slots=2, seconds=0.02), **options) as first,
        serving(FakeEngine(slots=2, seconds=0.02), **options) as second,
    ):
        yield first, second


Connect = Callable[[str], httpx.Client]


@pytest.fixture
def connect(servers: tuple[Running, Running], tmp_path: Path) -> Iterator[Connect]:
    """Makes clients of the nginx before both, each with an address of its own."""
    port = free_port()
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = CONFIGURATION.read_text()
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        f"/etc/ssl/{NAME}.pem": str(certificate),
        f"/etc/ssl/{NAME}.key": str(key),
        "127.0.0.1:8001": f"127.0.0.1:{servers[0].port}",
        "127.0.0.1:8002": f"127.0.0.1:{servers[1].port}",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "nginx.conf"
    file.write_text(text)
    command = ["nginx", "-c", file, "-p", tmp_path, "-e", tmp_path / "errors", "-g", f"daemon off; pid {tmp_path}/pid;"]
    subprocess.run([*command, "-t"], check=True, capture_output=True)
    process = subprocess.Popen(command)
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        insecure = ssl.create_default_context()
        insecure.check_hostname, insecure.verify_mode = False, ssl.CERT_NONE
        headers = {"Host": NAME, "Origin": f"https://{NAME}"}
        with contextlib.ExitStack() as clients:

            def made(address: str) -> httpx.Client:
                transport = httpx.HTTPTransport(verify=insecure, trust_env=False, local_address=address)
                client = httpx.Client(base_url=f"https://127.0.0.1:{port}", headers=headers, transport=transport)
                return clients.enter_context(client)

            yield made
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def client(connect: Connect) -> httpx.Client:
    return connect("127.0.0.1")


def test_pieces_arrive_as_they_are_written(client: httpx.Client, servers: tuple[Running, Running]) -> None:
    with client.stream("POST", "/v1/completions", json=completion(max_tokens=100, stream=True)) as response:
        lines = (line for line in response.iter_lines() if line)
        first = json.loads(next(lines).removeprefix("data: "))
        assert first["choices"][0]["text"]
        assert any(server.engine.active for server in servers), "the answer is still being written"
        assert list(lines)[-1] == "data: [DONE]"


def test_who_goes_frees_the_slot_behind_nginx_too(client: httpx.Client, servers: tuple[Running, Running]) -> None:
    with client.stream("POST", "/v1/completions", json=completion(max_tokens=400, stream=True)) as response:
        next(response.iter_lines())
    until(lambda: not any(server.engine.active for server in servers))
    assert sum(len(server.engine.cancelled) for server in servers) == 1


def test_when_one_server_drains_the_other_answers(client: httpx.Client, servers: tuple[Running, Running]) -> None:
    for _ in range(4):
        assert client.post("/v1/completions", json=completion(max_tokens=1)).status_code == 200
    assert all(server.engine.seen for server in servers), "both are used"
    servers[0].service.draining = True
    before = len(servers[0].engine.seen)
    for _ in range(20):
        assert client.post("/v1/completions", json=completion(max_tokens=1)).status_code == 200
    assert len(servers[0].engine.seen) == before


def test_one_loud_client_does_not_take_the_servers_from_the_others(connect: Connect) -> None:
    loud, other = connect("127.0.0.2"), connect("127.0.0.1")
    over = threading.Event()

    def flood(_: int) -> set[int]:
        told = set()
        while not over.is_set():
            told.add(loud.post("/v1/completions", json=completion(max_tokens=30)).status_code)
        return told

    with ThreadPoolExecutor(16) as pool:
        told = pool.map(flood, range(16))
        try:
            time.sleep(1)
            quiet = [other.post("/v1/completions", json=completion(max_tokens=1)).status_code for _ in range(20)]
        finally:
            over.set()
        assert quiet == [200] * 20
        assert set().union(*told) == {200, 429}


def test_foreign_names_and_made_up_addresses_go_no_further(
    client: httpx.Client, servers: tuple[Running, Running]
) -> None:
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/metrics").status_code == 403
    assert client.get("/").status_code == 200
    body = completion(max_tokens=400, stream=True)
    with client.stream("POST", "/v1/completions", json=body, headers={"X-Forwarded-For": "10.9.9.9"}) as response:
        next(response.iter_lines())
        clients = {name for server in servers for name in server.service.worker._outstanding}
    assert clients == {"127.0.0.1"}
