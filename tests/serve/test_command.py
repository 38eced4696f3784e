"""`gpt2 serve`: what it refuses, what it says, and how it ends."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from gpt2.config.commands import ServeSettings
from gpt2.serve.limits import connections_that_fit
from tests.conftest import SMALL, Answer
from tests.serve.harness import SECONDS, until
from tests.serve.tiny import tiny_folder

KEY = "a key that is long enough"


class Process:
    """`gpt2 serve` in a process of its own, on a free port."""

    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        known = {name: value for name, value in os.environ.items() if name != "GPT2_API_KEY"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt2", "serve", str(folder), "--port", "0", "--name", "tiny", *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**known, "OMP_NUM_THREADS": "1", **environment},
        )
        self.said = ""
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()
        until(lambda: "Stop with" in self.said or self.process.poll() is not None, 5 * SECONDS)
        self.url = re.findall(r"http://[^/]*", self.said)[0]

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def ended(self) -> int:
        """The exit code, when all that it said is known."""
        self._listening.join(SECONDS)
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def started(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts servers, and leaves none behind."""
    processes: list[Process] = []

    def start(*options: str, **environment: str) -> Process:
        processes.append(Process(folder, *options, **environment))
        return processes[-1]

    yield start
    for process in processes:
        process.process.kill()
        process.process.wait()


def test_it_says_where_it_is_and_drains_at_sigterm(started: Callable[..., Process], tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    server = started("--api-key-file", str(file))
    assert re.match(r"http://127\.0\.0\.1:\d+$", server.url)
    for word in (f"{server.url}/v1", "'tiny'", "parameters", "context 128", "Ctrl-C", "continues a text"):
        assert word in server.said
    command_line = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert KEY not in command_line and KEY not in server.said

    body = {"model": "tiny", "prompt": "secret words", "max_tokens": 100, "stream": True}
    known = {"Authorization": f"Bearer {KEY}"}
    with (
        httpx.Client(base_url=server.url, trust_env=False, headers=known) as client,
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        server.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.ended() == 0
    assert "Traceback" not in server.said and "secret" not in server.said
    assert "POST /v1/completions 200" in server.said


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_it_at_once(started: Callable[..., Process], second: signal.Signals, code: int) -> None:
    server = started(GPT2_API_KEY=KEY)
    assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as held:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        rest = "Content-Type: application/json\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        held.sendall((head + rest).encode())
        assert held.recv(100).startswith(b"HTTP/1.1 100")  # its body is waited for, at the end, too
        server.process.send_signal(signal.SIGINT)
        until(lambda: httpx.get(f"{server.url}/health", trust_env=False).status_code == 503)  # else both could be one
        server.process.send_signal(second)
        assert server.ended() == code
    assert "Traceback" not in server.said


def test_an_open_address_needs_a_key(cli: Callable[..., Answer], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPT2_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        answer = cli("serve", folder, "--host", host)
        assert answer.code == 2
        assert f"--host {host}" in answer.err and "GPT2_API_KEY" in answer.err
    assert ServeSettings().host == "127.0.0.1"


def test_keys_are_long_and_not_typed(cli: Callable[..., Answer], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for short in ("", "short"):
        monkeypatch.setenv("GPT2_API_KEY", short)
        answer = cli("serve", folder)
        assert answer.code == 2 and "GPT2_API_KEY" in answer.err and "secrets" in answer.err
    monkeypatch.delenv("GPT2_API_KEY")
    answer = cli("serve", folder, "--api-key-file", "missing.txt")
    assert answer.code == 2 and "missing.txt" in answer.err
    answer = cli("serve", folder, "--api-key-file", "/dev/zero")
    assert answer.code == 2 and "no end" in answer.err
    assert cli("serve", folder, "--api-key", KEY).code == 2  # whoever lists processes would read it
    assert not [name for name in ServeSettings.model_fields if "key" in name and not name.endswith("_file")]


@pytest.mark.parametrize("proxy", ["banana", "10.0.0.0/40", ""])
def test_a_proxy_has_an_address(cli: Callable[..., Answer], folder: Path, proxy: str) -> None:
    answer = cli("serve", folder, "--trusted-proxies", proxy)
    assert answer.code == 2 and "--trusted-proxies" in answer.err


@pytest.mark.parametrize("name", ["http://models.example.org", "models.example.org:80", "two words", ""])
def test_an_allowed_host_is_a_name(cli: Callable[..., Answer], folder: Path, name: str) -> None:
    answer = cli("serve", folder, "--allowed-hosts", name)
    assert answer.code == 2 and f"--allowed-hosts {name}" in answer.err and "models.example.org." in answer.err


def test_a_run_holds_nothing_of_the_environment(
    cli: Callable[..., Answer], workplace: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2_API_KEY", KEY)
    (workplace / "text.txt").write_text(text)
    assert cli("train", "text.txt", *SMALL, "--run", "r", "--train.steps", 2).code == 0
    files = [path for path in (workplace / "runs").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_port_that_is_taken_is_named(cli: Callable[..., Answer], folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = cli("serve", folder, "--port", port)
    assert answer.code == 2
    assert f"127.0.0.1:{port}" in answer.err and "--port" in answer.err
    assert cli("serve", folder, "--port", 70000).code == 2
    assert cli("serve", "no-such-run").code == 2


def test_connections_leave_descriptors_for_the_rest() -> None:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert connections_that_fit(10**9) == allowed - 64
    assert connections_that_fit(20) == 20
