"""The engine writes what the model alone would, stops where it should, and leaves no trace on the model."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gpt2.errors import CheckpointError, ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.reader import Piece, Reader
from gpt2.generation.request import Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
CONTEXT = 16
GREEDY = Sampling(temperature=0)


def tiny(vocab_size: int = BYTES.vocab_size, dropout: float = 0.0) -> GPT2:
    model = GPT2(GPT2Config(vocab_size, context_length=CONTEXT, n_layer=2, n_head=2, n_embd=16, dropout=dropout))
    model.init_weights(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # what and where was read decides: texts vary
            if parameter.dim() == 2:
                parameter.mul_(1.0 if name == "wte.weight" else 12.0)
        model.wte.weight[BYTES.end_of_text :] = 0.0  # never the likeliest
    return model.eval()


def scripted(ids: Iterable[int], model: GPT2 | None = None) -> Engine:
    """Writes these ids in turn, whatever the model thinks."""
    script = iter(ids)

    class Scripted(Reader):
        def read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
            logits = super().read(pieces)
            for row in logits:
                row[next(script)] = 1e9
            return logits

    model = tiny() if model is None else model
    return Engine(model, BYTES, reader=Scripted(model, 1))


@torch.no_grad()
def without_cache(model: GPT2, prompt: list[int], count: int) -> list[int]:
    """Greedy ids, the model reading everything anew each time; past the context, its newest three quarters."""
    window, ids = list(prompt), []
    for _ in range(count):
        if len(window) > CONTEXT:
            window = window[-(CONTEXT * 3 // 4) :]
        token = int(model(torch.tensor([window]))[0, -1].argmax())
        if token == BYTES.end_of_text:
            break
        ids.append(token)
        window.append(token)
    return ids


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 40])
def test_greedy_ids_are_those_without_a_cache_also_beyond_the_context(length: int) -> None:
    model = tiny()
    prompt = torch.randint(256, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    ids = list(Engine(model, BYTES).generate(prompt, 50, GREEDY))
    assert ids == without_cache(model, prompt, 50)
    assert len(ids) == 50
    assert len(set(ids)) > 5


def test_the_model_reads_a_full_context_in_one_go_and_then_token_by_token() -> None:
    model = tiny()
    lengths: list[int] = []
    model.h[0].register_forward_pre_hook(lambda _module, inputs: lengths.append(inputs[0].shape[1]))
    list(scripted([2] * 12, model).generate([1] * 10, 12, GREEDY))
    assert lengths == [10, 1, 1, 1, 1, 1, 1, 12, 1, 1, 1, 1]


def test_end_of_text_and_stop_ids_end_the_text_and_are_not_given() -> None:
    end = BYTES.end_of_text
    assert list(scripted([65, 66, end, 67]).generate([1], 9, GREEDY)) == [65, 66]
    assert list(scripted([65, 66, 67]).generate([1], 9, GREEDY, stop_ids=[66])) == [65]
    assert list(scripted([end]).generate([1], 9, GREEDY, stop_ids=[66])) == []
    assert list(scripted([65, 66, 67]).generate([1], 2, GREEDY)) == [65, 66]
    assert list(scripted([]).generate([1], 0, GREEDY)) == []


def test_an_empty_prompt_begins_a_document() -> None:
    engine = Engine(tiny(), BYTES)
    assert engine.complete("", 8, GREEDY) == BYTES.decode(list(engine.generate([BYTES.end_of_text], 8, GREEDY)))


def test_ids_pieces_and_string_agree() -> None:
    engine = Engine(tiny(), BYTES)
    text = "go 🤖"
    ids = list(engine.generate(BYTES.encode(text).tolist(), 30, Sampling(seed=1)))
    pieces = list(engine.stream(text, 30, Sampling(seed=1)))
    assert "".join(pieces) == engine.complete(text, 30, Sampling(seed=1)) == BYTES.decode(ids)
    assert len(pieces) > 5


def test_a_stop_string_ends_the_text() -> None:
    assert scripted(b"one\n\ntwo").complete("x", 9, GREEDY, stop=["\n\n"]) == "one"


def test_the_model_is_left_in_training_between_and_after_tokens() -> None:
    model = tiny(dropout=0.5).train()
    engine = Engine(model, BYTES)
    seen: list[bool] = []
    model.h[0].register_forward_pre_hook(lambda module, _inputs: seen.append(module.training))
    ids = []
    for token in engine.generate([1, 2, 3], 6, GREEDY):
        ids.append(token)
        assert model.training
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
    assert seen == [False] * 6
    assert ids == without_cache(model.eval(), [1, 2, 3], 6)  # no dropout


def test_a_text_that_is_left_or_fails_midway_leaves_the_model_in_training() -> None:
    model = tiny().train()
    engine = Engine(model, BYTES)
    list(islice(engine.generate([1], 9, GREEDY), 2))
    assert model.training

    def failing(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.ln_f.register_forward_pre_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        list(engine.generate([1], 9, GREEDY))
    handle.remove()
    assert model.training
    with pytest.raises(ConfigError, match="no token 10000"):
        list(engine.generate([10_000], 9, GREEDY))
    assert model.training


def test_training_goes_on_after_a_sample() -> None:
    model = tiny().train()
    list(Engine(model, BYTES).generate([1, 2], 3, GREEDY))
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_compiled_model_is_used_plain() -> None:
    model = tiny()
    engine = Engine(torch.compile(model), BYTES)  # type: ignore[arg-type]
    assert engine.model is model
    assert list(engine.generate([1], 5, GREEDY)) == without_cache(model, [1], 5)


def test_rows_of_the_model_beyond_the_tokenizer_are_never_chosen() -> None:
    model = tiny(vocab_size=320)
    with torch.no_grad():
        model.wte.weight[300:].normal_(0.0, 9.0, generator=torch.Generator().manual_seed(1))
    assert max(Engine(model, BYTES).generate([1, 7], 12, Sampling(5.0, seed=1))) < BYTES.vocab_size
    assert Engine(model, BYTES).reader.read([Piece(0, [1], 1)]).argmax() >= 300


def test_a_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="257 ids, the model 200"):
        Engine(tiny(vocab_size=200), BYTES)


def test_an_answer_that_is_no_number_is_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.ln_f.bias[0] = math.nan
    with pytest.raises(CheckpointError, match="NaN"):
        list(Engine(model, BYTES).generate([1], 5, GREEDY))


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="max-tokens -1"):
        list(Engine(tiny(), BYTES).generate([1], -1, GREEDY))
