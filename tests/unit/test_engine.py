"""The engine writes what the model alone would, stops where it should, and leaves no trace on the model."""

import math
from collections.abc import Iterable
from itertools import islice

import pytest
import torch
from torch import Tensor

from gpt2.errors import CheckpointError, ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.sampling import Sampler, greedy, make_sampler
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
CONTEXT = 16


def tiny(vocab_size: int = BYTES.vocab_size, dropout: float = 0.0) -> GPT2:
    model = GPT2(GPT2Config(vocab_size, context_length=CONTEXT, n_layer=2, n_head=2, n_embd=16, dropout=dropout))
    model.init_weights(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # what and where was read decides: texts vary
            if parameter.dim() == 2:
                parameter.mul_(1.0 if name == "wte.weight" else 12.0)
        model.wte.weight[BYTES.end_of_text :] = 0.0  # never the likeliest
    return model.eval()


def scripted(ids: Iterable[int]) -> Sampler:
    """Chooses these ids in turn, whatever the model thinks."""
    script = iter(ids)
    return lambda logits: torch.tensor(next(script))


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
    ids = list(Engine(model, BYTES).generate(prompt, 50, greedy))
    assert ids == without_cache(model, prompt, 50)
    assert len(ids) == 50
    assert len(set(ids)) > 5


def test_the_model_reads_a_full_context_in_one_go_and_then_token_by_token() -> None:
    model = tiny()
    lengths: list[int] = []
    model.register_forward_pre_hook(lambda _module, inputs: lengths.append(inputs[0].shape[1]))
    list(Engine(model, BYTES).generate([1] * 10, 12, scripted([2] * 12)))
    assert lengths == [10, 1, 1, 1, 1, 1, 1, 12, 1, 1, 1, 1]


def test_end_of_text_and_stop_ids_end_the_text_and_are_not_given() -> None:
    engine = Engine(tiny(), BYTES)
    end = BYTES.end_of_text
    assert list(engine.generate([1], 9, scripted([65, 66, end, 67]))) == [65, 66]
    assert list(engine.generate([1], 9, scripted([65, 66, 67]), stop_ids=[66])) == [65]
    assert list(engine.generate([1], 9, scripted([end]), stop_ids=[66])) == []
    assert list(engine.generate([1], 2, scripted([65, 66, 67]))) == [65, 66]
    assert list(engine.generate([1], 0, scripted([]))) == []


def test_an_empty_prompt_begins_a_document() -> None:
    engine = Engine(tiny(), BYTES)
    assert engine.complete("", 8, greedy) == BYTES.decode(list(engine.generate([BYTES.end_of_text], 8, greedy)))


def test_ids_pieces_and_string_agree() -> None:
    engine = Engine(tiny(), BYTES)
    text = "go 🤖"
    ids = list(engine.generate(BYTES.encode(text).tolist(), 30, make_sampler(1.0, seed=1)))
    pieces = list(engine.stream(text, 30, make_sampler(1.0, seed=1)))
    assert "".join(pieces) == engine.complete(text, 30, make_sampler(1.0, seed=1)) == BYTES.decode(ids)
    assert len(pieces) > 5


def test_a_stop_string_ends_the_text() -> None:
    engine = Engine(tiny(), BYTES)
    assert engine.complete("x", 9, scripted(b"one\n\ntwo"), stop=["\n\n"]) == "one"


def test_the_model_is_left_in_training_between_and_after_tokens() -> None:
    model = tiny(dropout=0.5).train()
    engine = Engine(model, BYTES)
    seen: list[bool] = []
    model.h[0].register_forward_pre_hook(lambda module, _inputs: seen.append(module.training))
    ids = []
    for token in engine.generate([1, 2, 3], 6, greedy):
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
    list(islice(engine.generate([1], 9, greedy), 2))
    assert model.training

    def failing(_logits: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.generate([1], 9, failing))
    assert model.training
    with pytest.raises(IndexError):
        list(engine.generate([10_000], 9, greedy))
    assert model.training


def test_training_goes_on_after_a_sample() -> None:
    model = tiny().train()
    list(Engine(model, BYTES).generate([1, 2], 3, greedy))
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_compiled_model_is_used_plain() -> None:
    model = tiny()
    engine = Engine(torch.compile(model), BYTES)  # type: ignore[arg-type]
    assert engine.model is model
    assert list(engine.generate([1], 5, greedy)) == without_cache(model, [1], 5)


def test_rows_of_the_model_beyond_the_tokenizer_are_never_chosen() -> None:
    model = tiny(vocab_size=320)
    seen: list[Tensor] = []

    def noting(logits: Tensor) -> Tensor:
        seen.append(logits)
        return torch.tensor(7)

    list(Engine(model, BYTES).generate([1, 7], 2, noting))
    with torch.no_grad():
        expected = model(torch.tensor([[1, 7, 7]]))[0, 1:, : BYTES.vocab_size]
    torch.testing.assert_close(torch.stack(seen), expected, atol=1e-5, rtol=0)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="257 ids, the model 200"):
        Engine(tiny(vocab_size=200), BYTES)


def test_an_answer_that_is_no_number_is_named() -> None:
    model = tiny()
    with torch.no_grad():
        model.ln_f.bias[0] = math.nan
    with pytest.raises(CheckpointError, match="NaN"):
        list(Engine(model, BYTES).generate([1], 5, greedy))


def test_a_negative_number_of_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="max-tokens -1"):
        list(Engine(tiny(), BYTES).generate([1], -1, greedy))
