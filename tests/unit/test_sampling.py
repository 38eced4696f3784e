"""Tokens are drawn with the probabilities that the settings say, from exactly the set that they leave."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2.errors import ConfigError
from gpt2.generation.sampling import apply_temperature, keep_top_k, keep_top_p, make_sampler

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
    for function, value in ((keep_top_k, 2), (keep_top_p, 0.7), (apply_temperature, 0.5)):
        assert torch.equal(function(rows, value)[1], function(rows[1], value))  # type: ignore[operator]
    assert make_sampler(temperature=0.0)(rows).tolist() == [1, 5]
    assert make_sampler(temperature=1.0, top_k=1, seed=0)(rows).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (0.7, 4, 0.9)],
)
def test_samples_follow_the_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    scaled = (LOGITS.double() / temperature).softmax(dim=0)
    order = scaled.argsort(descending=True).tolist()
    allowed = order[: top_k or 6]
    nucleus: list[int] = []
    total = scaled[allowed].sum().item()
    while sum(scaled[i].item() for i in nucleus) / total < top_p - 1e-12 and len(nucleus) < len(allowed):
        nucleus.append(allowed[len(nucleus)])
    probabilities = torch.zeros(6, dtype=torch.float64)
    probabilities[nucleus] = scaled[nucleus] / scaled[nucleus].sum()

    draws = make_sampler(temperature, top_k, top_p, seed=7)(LOGITS.expand(20_000, 6))
    counts = torch.bincount(draws, minlength=6).double()
    assert chi_square(counts, probabilities) < 20.5  # 5 degrees of freedom: exceeded once in a thousand seeds


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-300, 5e-324])
def test_temperature_zero_and_close_to_it_takes_the_likeliest(temperature: float) -> None:
    sampler = make_sampler(temperature, top_k=0, seed=3)
    assert {int(sampler(LOGITS)) for _ in range(50)} == {1}


def test_a_seed_repeats_itself_and_two_requests_do_not_disturb_each_other() -> None:
    def draws(sampler: object, count: int = 40) -> list[int]:
        return [int(sampler(LOGITS)) for _ in range(count)]  # type: ignore[operator]

    alone = draws(make_sampler(1.0, 0, 1.0, seed=11))
    first, second = make_sampler(1.0, 0, 1.0, seed=11), make_sampler(1.0, 0, 1.0, seed=12)
    woven = [(int(first(LOGITS)), int(second(LOGITS))) for _ in range(40)]
    assert [pair[0] for pair in woven] == alone
    assert [pair[1] for pair in woven] != alone
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert draws(make_sampler(1.0, 0, 1.0)) != draws(make_sampler(1.0, 0, 1.0))  # no seed: new each time
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
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**63}, "seed 9223372036854775808"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_sampler(**values)  # type: ignore[arg-type]
    assert named in caught.value.what
    assert caught.value.fix
