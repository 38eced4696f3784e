"""`transformers serve` on a checkpoint's folder answers a conversation as our own engine does."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.parity.test_chat_template import TEXT

from gpt2.chat.template import CHAT_TEMPLATE, conversation_ids
from gpt2.corpus.fields import Message
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import train_bpe
from gpt2.tokenizer.roles import RoleTokenizer
from gpt2.weights.huggingface import to_files

pytest.importorskip("transformers.cli.serve", reason="this version of transformers has no `serve`")

CONTEXT, TOKENS = 96, 24
SAID = [Message("user", "Is it 12 o'clock?"), Message("assistant", "It's été."), Message("user", "A 🤖 then?")]


def ask(url: str, body: Any = None) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body else None, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_a_conversation_is_answered_as_by_our_engine(tmp_path: Path) -> None:
    tokenizer = RoleTokenizer(train_bpe([TEXT] * 3, 320))
    model = GPT2(GPT2Config(tokenizer.vocab_size, CONTEXT, n_layer=2, n_head=3, n_embd=48)).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    config, generation, tensors = to_files(model, tokenizer.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **tokenizer.to_files(CONTEXT)}
    files["tokenizer_config.json"]["chat_template"] = CHAT_TEMPLATE
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path)]
    options = ["--port", str(port), "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                assert ask(f"{url}/health")["status"] == "ok"
                break
            except (urllib.error.URLError, ConnectionError):  # nobody listens yet
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < end, "it did not start"
                time.sleep(0.1)
        messages = [message._asdict() for message in SAID]
        body = {"model": str(tmp_path), "messages": messages, "max_tokens": TOKENS, "temperature": 0.0}
        answer = ask(f"{url}/v1/chat/completions", body)
    finally:
        server.kill()
        server.wait()
    prompt = conversation_ids(SAID, tokenizer, answering=True)
    ids = list(Engine(model, tokenizer).generate(prompt, TOKENS, Sampling(temperature=0), {tokenizer.roles.end}))
    assert len(ids) > 3
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(ids)
