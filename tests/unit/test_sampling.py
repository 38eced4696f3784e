"""Tokens are drawn with the probabilities that the settings say, from exactly the set that they leave."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpt2.errors import ConfigError
from gpt2.generation.request import Sampling
from gpt2.generation.sampling import BLOCK, Floats, Sampler, draw, keep_min_p, keep_top_k, keep_top_p, largest, weigh

LOGITS = np.array([0.5, 2.0, -1.0, 1.0, 0.0, -3.0], dtype=np.float32)  # likeliest first: 1, 3, 0, 4, 2, 5
WEIGHTS = weigh(LOGITS, 1.0)


def kept(weights: Floats) -> list[int]:
    return np.flatnonzero(weights).tolist()


def chi_square(counts: NDArray[np.integer], probabilities: Floats) -> float:
    """Pearson's statistic of the possible outcomes; any impossible one that occurred makes it infinite."""
    possible = probabilities > 0
    if counts[~possible].any():
        return math.inf
    expected = probabilities[possible] * counts.sum()
    return float(((counts[possible] - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("k", "expected"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 3, 4]), (6, [0, 1, 2, 3, 4, 5])])
def test_top_k_keeps_the_k_largest(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(WEIGHTS, k)) == expected


@pytest.mark.parametrize("k", [0, 6, 100])
def test_top_k_of_zero_or_beyond_the_vocabulary_keeps_all(k: int) -> None:
    assert np.array_equal(keep_top_k(WEIGHTS, k), WEIGHTS)


def test_top_k_keeps_exactly_k_of_equals_the_first() -> None:
    assert kept(keep_top_k(np.ones(10), 3)) == [0, 1, 2]


@pytest.mark.parametrize(("k", "expected"), [(0, []), (1, [1]), (2, [1, 3]), (3, [1, 3, 0]), (9, [1, 3, 0, 2])])
def test_the_largest_numbers_come_in_order_and_of_equals_the_first(k: int, expected: list[int]) -> None:
    assert largest(np.array([1.0, 2.0, 1.0, 2.0]), k).tolist() == expected


@given(st.integers(2, 5000), st.integers(1, 300), st.floats(0, 12), st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_top_k_is_what_sorting_all_would_keep(size: int, k: int, spread: float, seed: int) -> None:
    weights = weigh(np.random.default_rng(seed).standard_normal(size, dtype=np.float32) * spread, 1.0)
    assert kept(keep_top_k(weights, k)) == sorted(np.argsort(-weights, kind="stable")[:k].tolist())


@given(
    st.lists(st.floats(-8, 8), min_size=1, max_size=30),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_top_p_keeps_the_fewest_likeliest_tokens_that_reach_p(values: list[float], p: float) -> None:
    weights = weigh(np.array(values, dtype=np.float32), 1.0)
    probabilities = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    mask = keep_top_p(weights, p) > 0
    nucleus = probabilities[mask]
    assert nucleus.sum() >= p - 1e-12
    assert nucleus.sum() - nucleus.min() < p + 1e-12  # none could be spared
    if not mask.all():
        assert nucleus.min() >= probabilities[~mask].max()


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.9, 0.999999])
def test_a_nucleus_of_any_size_is_that_of_all_sorted(spread: float, p: float) -> None:
    weights = weigh(np.random.default_rng(1).standard_normal(50_000, dtype=np.float32) * spread, 1.0)
    likeliest = np.argsort(-weights, kind="stable")
    sums = weights[likeliest].cumsum(dtype=np.float64)
    size = int((sums < p * sums[-1]).sum()) + 1
    mask = keep_top_p(weights, p) > 0
    assert abs(int(mask.sum()) - size) <= (1 if p < 0.99 else 20)  # sums of another order round otherwise
    assert mask.all() or weights[mask].min() >= weights[~mask].max()


def test_what_top_k_and_top_p_keep_keeps_its_weight() -> None:
    for result in (keep_top_k(WEIGHTS, 3), keep_top_p(WEIGHTS, 0.8)):
        places = kept(result)
        assert 0 < len(places) < 6
        assert np.array_equal(result[places], WEIGHTS[places])


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
    exact = np.exp(LOGITS.astype(np.float64) / temperature)
    scaled = exact / exact.sum()
    order = np.argsort(-scaled).tolist()
    allowed = order[: top_k or 6]
    nucleus: list[int] = []
    total = scaled[allowed].sum()
    while scaled[nucleus].sum() / total < top_p - 1e-12 and len(nucleus) < len(allowed):
        nucleus.append(allowed[len(nucleus)])
    nucleus = [i for i in nucleus if scaled[i] >= min_p * scaled.max()]
    probabilities = np.zeros(6)
    probabilities[nucleus] = scaled[nucleus] / scaled[nucleus].sum()

    sampler = Sampler(Sampling(temperature, top_k, top_p, min_p, seed=7))
    counts = np.bincount([sampler(LOGITS) for _ in range(20_000)], minlength=6)
    assert chi_square(counts, probabilities) < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-300, 5e-324])
def test_temperature_zero_and_close_to_it_takes_the_likeliest(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature, seed=3))
    assert {sampler(LOGITS) for _ in range(50)} == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 1e-9},
        {"top_p": 1e-50},
        {"top_p": 5e-324},
        {"repetition_penalty": 1e-300},
        {"logit_bias": {1: 100.0}},
        {"logit_bias": dict.fromkeys([0, 2, 3, 4, 5], -100.0)},
        {"temperature": 1e-5},
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_most_extreme_values_leave_the_likeliest_alone(options: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(**{"temperature": 5.0, **options}, seed=3), [1], 6)
    assert {sampler(LOGITS) for _ in range(50)} == {1}
    assert LOGITS.tolist() == [0.5, 2.0, -1.0, 1.0, 0.0, -3.0]


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
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    assert kept(keep_min_p(probabilities, 0.29)) == [0, 1, 2]
    assert kept(keep_min_p(probabilities, 1.0)) == [0]
    assert np.array_equal(keep_min_p(probabilities, 0.0), probabilities)


def test_bias_and_penalties_move_the_logits_that_they_name() -> None:
    logits = np.array([2.0, 2.0, -2.0, -2.0, 1.0])
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0, logit_bias={4: 0.5}), [0, 2], 5)
    assert sampler.adjusted(logits).tolist() == [1.0, 2.0, -4.0, -2.0, 1.5]
    assert sampler(logits) == 1
    assert sampler.adjusted(logits).tolist() == [1.0, 1.0, -4.0, -2.0, 1.5]  # the answer counts, too
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.25, presence_penalty=0.5), [4], 5)
    assert [sampler(logits) for _ in range(5)] == [0, 1, 0, 1, 0]
    assert sampler.adjusted(logits).tolist() == [2 - 0.5 - 0.75, 2 - 0.5 - 0.5, -2.0, -2.0, 1.0]  # not the prompt's


@settings(deadline=None)
@given(
    logits=st.lists(st.integers(-3, 3), min_size=1, max_size=8),
    bias=st.dictionaries(st.integers(0, 7), st.sampled_from([-100.0, -2.0, 0.0, 1.0, 100.0])),
)
def test_greed_takes_the_first_of_the_largest_adjusted_logits(logits: list[int], bias: dict[int, float]) -> None:
    numbers = np.array(logits, dtype=np.float32)
    bias = {token: by for token, by in bias.items() if token < len(logits)}
    sampler = Sampler(Sampling(temperature=0, logit_bias=bias))
    assert sampler(numbers) == sampler.adjusted(numbers).argmax()
    assert numbers.tolist() == logits, "the logits are as before"


@pytest.mark.parametrize("wrong", [{2: math.nan}, {0: math.nan}, {1: math.inf}, dict.fromkeys(range(4), -math.inf)])
@pytest.mark.parametrize(
    "options",
    [{"temperature": 0}, {"temperature": 0, "logit_bias": {2: 5.0}}, {"temperature": 0, "presence_penalty": 1.0}, {},
     {"top_k": 2}, {"top_p": 0.5}],
)  # fmt: skip
def test_from_what_is_no_number_nothing_is_chosen(wrong: dict[int, float], options: dict[str, Any]) -> None:
    sampler = Sampler(Sampling(seed=1, **options), [], 4)
    logits = np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)
    assert sampler(logits) is not None
    logits[list(wrong)] = list(wrong.values())
    assert sampler(logits) is None


def test_a_token_that_cannot_be_chosen_never_is() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = np.array([0.0, 1.0, 0.0, 1.0, 0.0])
    assert {draw(weights, generator) for _ in range(5000)} == {1, 3}


@pytest.mark.parametrize("place", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 6])
@pytest.mark.parametrize("number", [0.0, 0.5, 1.0 - 2**-53])
def test_a_draw_from_many_blocks_finds_the_only_token_that_can_be_chosen(
    place: int, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([number], dtype=torch.float64))
    weights = np.zeros(3 * BLOCK + 7)
    weights[place] = 0.3
    assert draw(weights, torch.Generator()) == place


def test_the_largest_number_stands_for_the_last_token_that_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([1.0 - 2**-53], dtype=torch.float64))
    for seed in range(200):  # blocks are added up in another order than the tokens in them
        weights = np.random.default_rng(seed).random(2 * BLOCK + 200) ** 3
        weights[-5:] = 0.0
        assert draw(weights, torch.Generator()) == len(weights) - 6


def test_a_draw_from_many_blocks_follows_the_weights() -> None:
    weights = np.random.default_rng(3).random(1000)
    generator = torch.Generator().manual_seed(4)
    counts = np.bincount([draw(weights, generator) for _ in range(100_000)], minlength=1000)
    assert chi_square(counts, weights / weights.sum()) < 1143.9  # 999 degrees of freedom: once in a thousand seeds
