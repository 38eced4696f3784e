"""GPT-2 itself: it looks back only, the cache changes nothing, it starts as OpenAI's did, and it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2, GPT2Config

TINY = GPT2Config(vocab_size=50, context_length=16, n_layer=2, n_head=4, n_embd=32)


def tiny(config: GPT2Config = TINY, std_factor: float = 1.0) -> GPT2:
    """A model with random weights; a larger factor makes attention decide, so that a wrong mask shows."""
    model = GPT2(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(std_factor)
    return model.eval()


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(TINY.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_a_later_token_changes_no_earlier_logit() -> None:
    model, tokens = tiny(std_factor=8.0), ids(1, 16)
    before = model(tokens)
    for place in range(16):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % TINY.vocab_size
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place:], before[:, place:], atol=1e-3)


def test_gradients_flow_to_all_earlier_tokens_and_no_later_one() -> None:
    model, tokens = tiny(std_factor=8.0), ids(1, 16)
    embedded: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    model.wte.register_forward_hook(keep)
    for place in range(16):
        embedded.clear()
        model(tokens)[0, place].square().sum().backward()
        gradient = embedded[0].grad
        assert gradient is not None
        reached = gradient[0].abs().sum(dim=1) > 0  # (T,)
        assert reached.tolist() == [earlier <= place for earlier in range(16)]


@pytest.mark.parametrize("split", range(1, 16))
def test_reading_in_two_parts_through_the_cache_gives_the_same_logits(split: int) -> None:
    model, tokens = tiny(std_factor=8.0), ids(3, 16)
    with torch.no_grad():
        cache = model.new_cache(batch=3)
        first = model(tokens[:, :split], cache)
        cache.advance(split)
        second = model(tokens[:, split:], cache)
        torch.testing.assert_close(torch.cat([first, second], dim=1), model(tokens), atol=1e-5, rtol=0)


def test_reading_token_by_token_and_after_a_truncation_gives_the_same_logits() -> None:
    model, tokens = tiny(std_factor=8.0), ids(1, 16)
    with torch.no_grad():
        cache = model.new_cache()
        for _ in range(2):
            rows = []
            for place in range(cache.lengths[0], 16):
                rows.append(model(tokens[:, place : place + 1], cache))
                cache.advance(1)
            whole = model(tokens)[:, 16 - len(rows) :]
            torch.testing.assert_close(torch.cat(rows, dim=1), whole, atol=1e-5, rtol=0)
            cache.truncate(0, 5)


def test_weights_start_as_openai_set_them() -> None:
    config = GPT2Config(vocab_size=2000, context_length=512, n_layer=8, n_head=4, n_embd=128)
    expected = {"wte": 0.02, "wpe": 0.01, "c_attn": 0.02, "c_fc": 0.02, "c_proj": 0.02 / math.sqrt(16)}
    for name, parameter in tiny(config).named_parameters():
        kind = name.split(".")[-2]
        if name.endswith("bias"):
            assert not parameter.any()
        elif kind.startswith("ln"):
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(expected[kind], rel=0.03), name
            assert abs(parameter.mean().item()) < 4 * expected[kind] / math.sqrt(parameter.numel()), name


def test_the_first_loss_is_that_of_guessing() -> None:
    tokens = ids(4, 16)
    loss = F.cross_entropy(tiny()(tokens).flatten(0, 1), tokens.roll(-1, dims=1).flatten())
    assert loss.item() == pytest.approx(math.log(TINY.vocab_size), abs=0.1)


def test_every_weight_is_counted_once() -> None:
    assert parameters(TINY) == sum(parameter.numel() for parameter in tiny().parameters())


def test_a_model_learns_one_batch_by_heart() -> None:
    torch.manual_seed(0)
    model, tokens = tiny().train(), ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = torch.tensor(math.inf)
    for _ in range(200):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02


def test_dropout_acts_in_training_only() -> None:
    model = tiny(GPT2Config(vocab_size=50, context_length=16, n_layer=2, n_head=4, n_embd=32, dropout=0.5))
    tokens = ids(1, 16)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_more_tokens_than_the_context_are_refused() -> None:
    with pytest.raises(AssertionError, match="17 tokens in a context of 16"):
        tiny()(ids(1, 17))
