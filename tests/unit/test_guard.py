"""Which steps may reach the weights."""

import json
import math
import random
import re

import pytest

from gpt2.training.guard import WINDOW, Guard

TOKENS = 4096


def warmed(sigma: float = 6.0, spread: float = 0.2) -> Guard:
    guard, draw = Guard(sigma), random.Random(0)
    for _ in range(WINDOW):
        assert guard.objection(draw.gauss(3.0, spread), draw.gauss(1.0, 0.3), TOKENS) is None
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
def test_what_is_no_number_is_refused_at_once(loss: float, norm: float) -> None:
    assert Guard(0.0).objection(loss, norm, TOKENS)


def test_a_jump_is_refused_and_a_fall_is_not() -> None:
    guard = warmed()
    assert "loss" in (guard.objection(4.5, 1.0, TOKENS) or "")
    assert re.search(r"gradient norm jumped to 5, above [34]\.\d+", guard.objection(3.0, 5.0, TOKENS) or "")
    assert guard.objection(0.1, 0.01, TOKENS) is None
    assert guard.objection(4.0, 2.0, TOKENS) is None


def test_before_the_window_is_full_and_when_switched_off_only_numbers_count() -> None:
    guard = Guard(6.0)
    for _ in range(WINDOW - 1):
        guard.objection(3.0, 1.0, TOKENS)
    assert guard.objection(50.0, 50.0, TOKENS) is None
    assert warmed(sigma=0.0).objection(50.0, 50.0, TOKENS) is None


def test_an_even_run_is_not_stopped_by_a_breath() -> None:
    guard = Guard(6.0)
    for _ in range(WINDOW):
        guard.objection(0.01, 0.001, TOKENS)
    assert guard.objection(0.2, 0.002, TOKENS) is None


def test_norms_have_a_long_tail_that_is_no_jump() -> None:
    """As in steps of 64 tokens each, where nothing is wrong."""
    draw = random.Random(0)
    for _ in range(20):
        guard = Guard(6.0)
        for _ in range(WINDOW):
            guard.objection(3.0, draw.gauss(1.0, 0.25), TOKENS)
        assert guard.objection(3.0, 3.3, TOKENS) is None
        assert guard.objection(3.0, 5.0, TOKENS)


def test_what_was_refused_is_not_remembered_and_the_rest_is_saved() -> None:
    guard = warmed()
    before = json.dumps(guard.state())
    guard.objection(math.nan, 1.0, TOKENS)
    guard.objection(99.0, 1.0, TOKENS)
    assert json.dumps(guard.state()) == before
    other = Guard(6.0)
    other.restore(json.loads(before))
    for loss in (4.0, 4.5, 3.0, 4.2):
        assert (guard.objection(loss, 1.0, TOKENS) is None) == (other.objection(loss, 1.0, TOKENS) is None)


def answers(draw: random.Random) -> tuple[float, float, float]:
    """Loss, norm and tokens of a batch of answers: all short, as one in twenty is, or of some length."""
    tokens = draw.randint(100, 200) if draw.random() < 0.05 else draw.randint(400, 1800)
    return draw.gauss(3.0, 8 / math.sqrt(tokens)), abs(draw.gauss(50.0, 8.0)) / math.sqrt(tokens), tokens


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_of_few_tokens_scatters_and_is_no_jump(seed: int) -> None:
    draw, guard = random.Random(seed), Guard(6.0)
    assert [objection for _ in range(3000) if (objection := guard.objection(*answers(draw)))] == []
    assert "loss" in (guard.objection(9.0, 4.0, 150) or "")
    assert "gradient" in (guard.objection(3.0, 30.0, 150) or "")
    assert "gradient" in (guard.objection(3.0, 12.0, 1800) or "")


def test_a_batch_of_many_tokens_whose_gradient_is_as_ever_is_no_jump() -> None:
    guard = Guard(6.0)
    for _ in range(WINDOW):
        guard.objection(3.0, 1.0, 100)
    assert guard.objection(3.0, 1.1, 10_000) is None


def test_a_state_of_before_tokens_were_counted_can_be_gone_on_from() -> None:
    guard = warmed()
    guard.restore({"loss": [3.0] * WINDOW, "norm": [1.0] * WINDOW})
    assert guard.objection(50.0, 50.0, TOKENS) is None
