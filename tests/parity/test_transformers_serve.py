"""`transformers serve` on a checkpoint's folder answers a conversation as our own engine does."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.parity.foreign import check_a_conversation, serving
from tests.parity.test_chat_template import TEXT

from gpt2.chat.template import CHAT_TEMPLATE
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import train_bpe
from gpt2.tokenizer.roles import RoleTokenizer
from gpt2.weights.huggingface import to_files

pytest.importorskip("transformers.cli.serve", reason="this version of transformers has no `serve`")

CONTEXT = 96


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
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tmp_path)]
    with serving([*command, "--device", "cpu", "--dtype", "float32"], tmp_path / "log") as url:
        check_a_conversation(url, str(tmp_path), model, tokenizer)
