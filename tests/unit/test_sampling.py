"""Tokens are drawn with the probabilities that the settings say, from exactly the set that they leave."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2.errors import ConfigError
from gpt2.generation.request import Sampling
from gpt2.generation.sampling import Sampler, apply_temperature, draw, greedy, keep_min_p, keep_top_k, keep_top_p

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0, -3.0])  # likeliest first: 1, 3, 0, 4, 2, 5


def kept(logits: Tensor) -> list[int]:
    return torch.isfinite(logits).nonzero().flatten().tolist()


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's statistic of the possible outcomes; any impossible one that occurred makes it infinite."""
    possible = probabilities > 0
    if counts[~possible].any():
        return math.inf
    expected = probabilities[possible] * counts.sum()
    return ((counts[possible] - expected).square() / expected).sum().item()


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 3, 4]), (6, [0, 1, 2, 3, 4, 5])])
def test_top_k_keeps_the_k_largest(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize("k", [0, 6, 100])
def test_top_k_of_zero_or_beyond_the_vocabulary_keeps_all(k: int) -> None:
    assert torch.equal(keep_top_k(LOGITS, k), LOGITS)


def test_top_k_keeps_exactly_k_of_equals() -> None:
    assert len(kept(keep_top_k(torch.zeros(10), 3))) == 3


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=30),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(values: list[float], p: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    probabilities = logits.softmax(dim=0)
    mask = torch.isfinite(keep_top_p(logits, p))
    nucleus = probabilities[mask]
    assert nucleus.sum().item() >= p - 1e-12
    assert (nucleus.sum() - nucleus.min()).item() < p + 1e-12  # none could be spared
    if not mask.all():
        assert nucleus.min() >= probabilities[~mask].max()


def test_what_top_k_and_top_p_keep_keeps_its_logit() -> None:
    for result in (keep_top_k(LOGITS, 3), keep_top_p(LOGITS, 0.8)):
        places = kept(result)
        assert 0 < len(places) < 6
        assert torch.equal(result[places], LOGITS[places])


def test_every_row_of_a_batch_is_treated_by_itself() -> None:
    rows = torch.stack([LOGITS, -LOGITS])
    for function, value in ((keep_top_k, 2), (keep_top_p, 0.7), (keep_min_p, 0.2), (apply_temperature, 0.5)):
        assert torch.equal(function(rows, value)[1], function(rows[1], value))  # type: ignore[operator]
    assert greedy(rows).tolist() == [1, 5]
    assert draw(keep_top_k(rows, 1), torch.Generator()).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.5, 0, 1.0, 0.0),
        (2.0, 0, 1.0, 0.0),
        (1.0, 3, 1.0, 0.0),
        (1.0, 0, 0.7, 0.0),
        (0.7, 4, 0.9, 0.0),
        (2.0, 5, 0.9, 0.3),
    ],
)
def test_samples_follow_the_probabilities(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    scaled = (LOGITS.double() / temperature).softmax(dim=0)
    order = scaled.argsort(descending=True).tolist()
    allowed = order[: top_k or 6]
    nucleus: list[int] = []
    total = scaled[allowed].sum().item()
    while sum(scaled[i].item() for i in nucleus) / total < top_p - 1e-12 and len(nucleus) < len(allowed):
        nucleus.append(allowed[len(nucleus)])
    nucleus = [i for i in nucleus if scaled[i] >= min_p * scaled.max()]
    probabilities = torch.zeros(6, dtype=torch.float64)
    probabilities[nucleus] = scaled[nucleus] / scaled[nucleus].sum()

    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, seed=7))
    draws = draw(sampler.adjusted(LOGITS).expand(20_000, 6), sampler.generator)
    counts = torch.bincount(draws, minlength=6).double()
    assert chi_square(counts, probabilities) < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-300, 5e-324])
def test_temperature_zero_and_close_to_it_takes_the_likeliest(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature, seed=3))
    assert {int(sampler(LOGITS)) for _ in range(50)} == {1}


def test_a_seed_repeats_itself_and_two_requests_do_not_disturb_each_other() -> None:
    def draws(sampler: object, count: int = 40) -> list[int]:
        return [int(sampler(LOGITS)) for _ in range(count)]  # type: ignore[operator]

    alone = draws(Sampler(Sampling(seed=11)))
    first, second = Sampler(Sampling(seed=11)), Sampler(Sampling(seed=12))
    woven = [(int(first(LOGITS)), int(second(LOGITS))) for _ in range(40)]
    assert [pair[0] for pair in woven] == alone
    assert [pair[1] for pair in woven] != alone
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draws(Sampler(Sampling())) != draws(Sampler(Sampling()))  # no seed: new each time
    assert torch.equal(torch.get_rng_state(), state)  # the program's own generator is not touched


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": -1}, "top-k -1"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.5}, "top-p 1.5"),
        ({"top_p": math.nan}, "top-p nan"),
        ({"min_p": -0.1}, "min-p -0.1"),
        ({"repetition_penalty": 0.0}, "repetition-penalty 0.0"),
        ({"frequency_penalty": math.nan}, "frequency-penalty nan"),
        ({"presence_penalty": 101.0}, "presence-penalty 101.0"),
        ({"logit_bias": {3: math.inf}}, "logit-bias of token 3"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**values)  # type: ignore[arg-type]
    assert named in caught.value.what
    assert caught.value.fix


def test_min_p_keeps_what_is_near_enough_to_the_likeliest() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    assert kept(keep_min_p(probabilities.log(), 0.29)) == [0, 1, 2]
    assert kept(keep_min_p(probabilities.log(), 1.0)) == [0]
    assert torch.equal(keep_min_p(LOGITS, 0.0), LOGITS)


def test_a_nucleus_larger_than_the_short_list_is_found_by_sorting_all() -> None:
    flat = torch.linspace(0.0, 1.0, 5000, dtype=torch.float64)
    nucleus = flat.softmax(dim=0)[torch.isfinite(keep_top_p(flat, 0.9))]
    assert nucleus.sum() >= 0.9
    assert nucleus.sum() - nucleus.min() < 0.9
    assert len(nucleus) > 1024


def test_bias_and_penalties_move_the_logits_that_they_name() -> None:
    logits = torch.tensor([2.0, 2.0, -2.0, -2.0, 1.0], dtype=torch.float64)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0, logit_bias={4: 0.5}), [0, 2], 5)
    assert sampler.adjusted(logits).tolist() == [1.0, 2.0, -4.0, -2.0, 1.5]
    assert sampler(logits) == 1
    assert sampler.adjusted(logits).tolist() == [1.0, 1.0, -4.0, -2.0, 1.5]  # the answer counts, too
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.25, presence_penalty=0.5), [4], 5)
    assert [sampler(logits) for _ in range(5)] == [0, 1, 0, 1, 0]
    assert sampler.adjusted(logits).tolist() == [2 - 0.5 - 0.75, 2 - 0.5 - 0.5, -2.0, -2.0, 1.0]  # not the prompt's


def test_a_token_that_cannot_be_chosen_never_is() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf], dtype=torch.float64).expand(50_000, 5)
    assert set(draw(logits, torch.Generator().manual_seed(2)).tolist()) == {1, 3}
