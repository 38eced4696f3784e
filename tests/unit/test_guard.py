"""Which steps may reach the weights."""

import json
import math
import random

import pytest

from gpt2.training.guard import WINDOW, Guard


def warmed(sigma: float = 6.0, spread: float = 0.2) -> Guard:
    guard, draw = Guard(sigma), random.Random(0)
    for _ in range(WINDOW):
        assert guard.objection(draw.gauss(3.0, spread), draw.gauss(1.0, 0.3)) is None
    return guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
def test_what_is_no_number_is_refused_at_once(loss: float, norm: float) -> None:
    assert Guard(0.0).objection(loss, norm)


def test_a_jump_is_refused_and_a_fall_is_not() -> None:
    guard = warmed()
    assert "loss" in (guard.objection(4.5, 1.0) or "")
    assert "gradient" in (guard.objection(3.0, 4.0) or "")
    assert guard.objection(0.1, 0.01) is None
    assert guard.objection(4.0, 2.0) is None


def test_before_the_window_is_full_and_when_switched_off_only_numbers_count() -> None:
    guard = Guard(6.0)
    for _ in range(WINDOW - 1):
        guard.objection(3.0, 1.0)
    assert guard.objection(50.0, 50.0) is None
    assert warmed(sigma=0.0).objection(50.0, 50.0) is None


def test_an_even_run_is_not_stopped_by_a_breath() -> None:
    guard = Guard(6.0)
    for _ in range(WINDOW):
        guard.objection(0.01, 0.001)
    assert guard.objection(0.2, 0.002) is None


def test_what_was_refused_is_not_remembered_and_the_rest_is_saved() -> None:
    guard = warmed()
    before = json.dumps(guard.state())
    guard.objection(math.nan, 1.0)
    guard.objection(99.0, 1.0)
    assert json.dumps(guard.state()) == before
    other = Guard(6.0)
    other.restore(json.loads(before))
    for loss in (4.0, 4.5, 3.0, 4.2):
        assert (guard.objection(loss, 1.0) is None) == (other.objection(loss, 1.0) is None)
