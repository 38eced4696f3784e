"""A model of the hub, from a server on this machine that answers as the hub does."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from gpt2.errors import UserError
from gpt2.weights.hub import fetch, is_hub_name

FILES = {
    "config.json": json.dumps({"model_type": "gpt2"}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(3_000_000),
}


class Hub(HTTPServer):
    """Serves `files` under owner/model; `asked` notes paths and tokens."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.asked: list[tuple[str, str | None]] = []
        self.cut = False


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path.startswith("/blobs/"):
            content = self.server.files[self.path.removeprefix("/blobs/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.server.cut else content)
            return
        owner, name = self.path.removeprefix("/owner/model/resolve/main/"), self.path.rpartition("/")[2]
        if self.path.startswith("/private/"):
            self.send_error(401)
        elif owner == self.path or name not in self.server.files:
            self.send_error(404)
        else:  # the hub sends large files from elsewhere
            self.send_response(302)
            self.send_header("Location", f"/blobs/{name}")
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    folder = fetch("owner/model", tmp_path)
    assert folder == tmp_path / "owner--model"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES  # tokenizer_config.json may lack
    asked = len(hub.asked)
    assert fetch("owner/model", tmp_path) == folder
    assert len(hub.asked) == asked


def test_a_token_is_sent_where_there_is_one(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abc")
    fetch("owner/model", tmp_path)
    assert {token for path, token in hub.asked if not path.startswith("/blobs/")} == {"Bearer abc"}
    assert {token for path, token in hub.asked if path.startswith("/blobs/")} == {None}  # others need not know it


@pytest.mark.parametrize(
    ("name", "broken", "part"),
    [
        ("owner/other", None, "has no config.json"),
        ("private/model", None, "does not exist, or is private"),
        ("owner/model", "model.safetensors", "has no model.safetensors"),
        ("owner/model", "cut", "broke off"),
        ("owner/model", "llama", "'llama', not 'gpt2'"),
    ],
)
def test_what_cannot_be_had_is_said_and_leaves_nothing(
    hub: Hub, tmp_path: Path, name: str, broken: str | None, part: str
) -> None:
    if broken == "cut":
        hub.cut = True
    elif broken == "llama":
        hub.files["config.json"] = json.dumps({"model_type": "llama"}).encode()
    elif broken:
        del hub.files[broken]
    with pytest.raises(UserError, match=part) as caught:
        fetch(name, tmp_path)
    assert caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        fetch("gpt2", tmp_path)
    assert "HF_ENDPOINT" in caught.value.fix
    assert "model.safetensors" in caught.value.fix


def test_names_of_models() -> None:
    assert all(map(is_hub_name, ("gpt2", "openai-community/gpt2", "a/b.c-d_e")))
    assert not any(map(is_hub_name, ("my-run", "runs/x/best", "/tmp/x", "../x/y", "./x", "a/b/c", "x y/z", "-x/y")))
