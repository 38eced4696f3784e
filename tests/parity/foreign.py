"""A server of somebody else's, on one of our models."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2.chat.template import conversation_ids
from gpt2.corpus.fields import Message
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.model.gpt2 import GPT2
from gpt2.tokenizer.roles import RoleTokenizer

SECONDS_TO_START = 120
SAID = [Message("user", "Is it 12 o'clock?"), Message("assistant", "It's été."), Message("user", "A 🤖 then?")]
TOKENS = 24


def ask(url: str, body: Any = None) -> Any:
    """What comes back as JSON."""
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


@contextlib.contextmanager
def serving(command: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a server that is started with this command, while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with log.open("w") as file:
        options = ["--host", "127.0.0.1", "--port", str(port)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen([*command, *options], env=environment, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + SECONDS_TO_START
    try:
        while True:
            try:
                assert ask(f"{url}/health")["status"] == "ok"
                break
            except (urllib.error.URLError, ConnectionError):  # nobody listens yet, or it still loads
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, "it did not start"
                time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def check_a_conversation(url: str, name: str, model: GPT2, tokenizer: RoleTokenizer) -> None:
    """It is answered as by our engine."""
    messages = [message._asdict() for message in SAID]
    body = {"model": name, "messages": messages, "max_tokens": TOKENS, "temperature": 0.0}
    answer = ask(f"{url}/v1/chat/completions", body)
    prompt = conversation_ids(SAID, tokenizer, answering=True)
    ids = list(Engine(model, tokenizer).generate(prompt, TOKENS, Sampling(temperature=0), {tokenizer.roles.end}))
    assert len(ids) > 3
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(ids)
