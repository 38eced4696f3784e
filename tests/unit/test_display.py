"""What is shown of a step: as much as fits, and a time left that validations are part of."""

from types import SimpleNamespace

import pytest

from gpt2.training import display
from gpt2.training.display import Display
from gpt2.training.metrics import Record


def record(step: int, speed: float = 1000.0) -> Record:
    return Record(step, 0.5, step * 100, 1.0, 2.0, 1e-3, 1.0, speed)


def test_the_time_left_counts_all_that_passes_and_does_not_follow_one_step() -> None:
    now = 0.0
    shown = Display(110, 0, None, clock=lambda: now)
    shown.log(record(1))
    assert shown.left(1) == ""
    for step in range(2, 12):
        now += 1.0 if step % 5 else 6.0  # a validation in every fifth
        shown.log(record(step, speed=10.0 if step == 11 else 1000.0))
    assert shown.left(11) == "left 3:18"  # 99 steps of 2 s
    shown.change_steps(11 + 3600)
    assert shown.left(11) == "left 2:00:00"


def test_an_old_validation_loss_says_of_which_step_it_is() -> None:
    shown = Display(1000, 50, 5.119, 50)
    shown.log(record(51))
    assert "val 5.119 at 50" in shown.line(record(51))
    validated = record(100)
    validated.val_loss = 4.5
    shown.log(validated)
    assert "val 4.500  " in shown.line(validated)
    assert "val 4.500 at 100" in shown.line(record(101))


@pytest.mark.parametrize(("width", "whole"), [(80, False), (120, True)])
def test_a_narrow_terminal_shows_less(monkeypatch: pytest.MonkeyPatch, width: int, whole: bool) -> None:
    shown = Display(100_000, 0, 3.0)
    shown.log(record(1))
    monkeypatch.setattr(display, "console", lambda: SimpleNamespace(is_terminal=True, width=width))
    line = shown.line(record(99_999, speed=123_456.0))
    assert ("lr" in line and "epoch" in line) == whole
    assert whole or len(line) <= 55
