"""A GGUF file holds the model: by the format's own reader, and in llama.cpp, which says the same with the same ids."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.test_chat_template import TEXT, conversation, random_text

from gpt2.chat.template import CHAT_TEMPLATE, RoleFormat, conversation_ids
from gpt2.corpus.fields import Message
from gpt2.errors import ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.bpe import train_bpe
from gpt2.tokenizer.char import train_char
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer
from gpt2.weights.gguf import write_gguf

SAID = [Message("user", "Is it\n  12 o'clock?"), Message("assistant", "It's été."), Message("user", "A 🤖 then?")]


def tokenizer(kind: str) -> RoleTokenizer:
    return RoleTokenizer(gpt2_tokenizer() if kind == "gpt2" else train_bpe([TEXT] * 3, 320))


def written(folder: Path, tokenizer: Tokenizer, filling: int = 0) -> tuple[Path, GPT2]:
    """A model of random weights in a file; its embedding has some rows without an id."""
    model = GPT2(GPT2Config(tokenizer.vocab_size + filling, context_length=96, n_layer=2, n_head=3, n_embd=48))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if name in ("wte.weight", "wpe.weight") else 0.15
            parameter.copy_(torch.empty_like(parameter).normal_(0.0, spread, generator=generator))
            if ".ln_" in f".{name}" and name.endswith("weight"):
                parameter.add_(1.0)
    template = CHAT_TEMPLATE if isinstance(tokenizer, RoleTokenizer) else None
    write_gguf(folder / "model.gguf", model.eval(), tokenizer, "a model", template)
    return folder / "model.gguf", model


def opened(path: Path, **options: Any) -> Any:
    llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: it compiles for minutes")
    return llama.Llama(str(path), n_ctx=96, n_threads=1, verbose=False, logits_all=True, **options)


def test_the_formats_own_reader_finds_all_of_it(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    ours = tokenizer("bpe")
    path, model = written(tmp_path, ours, filling=3)
    reader = gguf.GGUFReader(path)
    found = {name: field.contents() for name, field in reader.fields.items()}
    assert (found["general.architecture"], found["gpt2.block_count"], found["gpt2.context_length"]) == ("gpt2", 2, 96)
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE
    assert found["tokenizer.ggml.tokens"][ours.end_of_text :] == ["<|endoftext|>", *ROLE_SPELLINGS]
    assert found["tokenizer.ggml.token_type"] == [1] * ours.end_of_text + [3] * 5
    assert found["tokenizer.ggml.eos_token_id"] == ours.roles.end
    assert found["tokenizer.ggml.bos_token_id"] == ours.end_of_text
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    weights = model.state_dict()
    assert len(tensors) == len(weights)
    assert torch.equal(tensors["token_embd.weight"], weights["wte.weight"][: ours.vocab_size])
    assert torch.equal(tensors["blk.1.ffn_down.weight"], weights["h.1.mlp.c_proj.weight"])
    assert torch.equal(tensors["blk.0.attn_qkv.bias"], weights["h.0.attn.c_attn.bias"])


def test_a_run_that_was_not_tuned_has_no_form_of_conversations(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    plain = train_bpe([TEXT], 300)
    fields = gguf.GGUFReader(written(tmp_path, plain)[0]).fields
    assert "tokenizer.chat_template" not in fields
    assert fields["tokenizer.ggml.eos_token_id"].contents() == plain.end_of_text


def test_characters_are_no_tokens_of_llama_cpp(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llama\.cpp knows no tokenizer such as char"):
        written(tmp_path, train_char([TEXT]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["gpt2", "bpe"])
def test_llama_cpp_writes_conversations_with_the_same_ids(tmp_path: Path, kind: str) -> None:
    ours = tokenizer(kind)
    theirs = opened(written(tmp_path, ours)[0], vocab_only=True)
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    template = theirs.metadata["tokenizer.chat_template"]
    ended, asking = (Jinja2ChatFormatter(template, "<|end|>", "<|endoftext|>", due) for due in (False, True))
    draw = random.Random(7)
    for number in range(1000):
        said, answering = conversation(draw, ""), number % 2 == 0
        messages: Any = [message._asdict() for message in said]
        prompt = (asking if answering else ended)(messages=messages).prompt
        assert theirs.tokenize(prompt.encode(), add_bos=False, special=True) == conversation_ids(said, ours, answering)
        text = random_text(draw, "") + draw.choice(["", *ROLE_SPELLINGS])
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ours.encode(text).tolist()


def test_llama_cpp_expects_the_same_next_tokens(tmp_path: Path) -> None:
    ours = tokenizer("bpe")
    path, model = written(tmp_path, ours, filling=3)
    theirs = opened(path)
    ids = conversation_ids(SAID, ours, answering=True)
    theirs.eval(ids)
    found = torch.tensor(theirs.scores[: len(ids)])
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, :, : ours.vocab_size]
    # Its GELU is a table of half floats, its cache half floats.
    assert (found - expected).abs().max() < 0.02 * expected.std()
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_llama_cpp_answers_as_we_do_and_ends_where_we_end(tmp_path: Path) -> None:
    ours = tokenizer("bpe")
    path, model = written(tmp_path, ours)
    with torch.no_grad():  # after so many tokens it wants to end
        model.wpe.weight[70:] = 30 * model.wte.weight[ours.roles.end]
    write_gguf(path, model, ours, "a model", CHAT_TEMPLATE)
    theirs = opened(path)
    stops = RoleFormat().stops(ours)
    ids = conversation_ids(SAID, ours, answering=True)
    expected = ours.decode(Engine(model, ours).generate(ids, 50, Sampling(0.0), stops))
    messages: Any = [message._asdict() for message in SAID]
    choice = theirs.create_chat_completion(messages, temperature=0.0, repeat_penalty=1.0, max_tokens=50)["choices"][0]
    assert choice["message"]["content"] == expected.replace("\ufffd", "")  # halves of characters it leaves out
    assert len(expected) > 20
    assert choice["finish_reason"] == "stop"
