"""llama.cpp's own `llama-server` on an exported file answers a conversation as our own engine does."""

import shutil
from pathlib import Path

import pytest
from tests.parity.foreign import check_a_conversation, serving
from tests.parity.test_gguf import tokenizer, written

SERVER = shutil.which("llama-server")


@pytest.mark.skipif(SERVER is None, reason="there is no llama-server on the path")
@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_a_conversation_is_answered_as_by_our_engine(tmp_path: Path, kind: str) -> None:
    assert SERVER is not None
    ours = tokenizer(kind)
    path, model = written(tmp_path, ours)
    with serving([SERVER, "--jinja", "-m", str(path), "--threads", "1"], tmp_path / "log") as url:
        check_a_conversation(url, "a model", model, ours)
