"""The choice of a model for a given time: pure arithmetic."""

import pytest

from gpt2.config.presets import Shape
from gpt2.model import budget
from gpt2.model.cost import block_parameters
from gpt2.model.scaling import LAW, Text, worth

TEXT = Text(tokens=1_000_000, characters_per_token=3.0, bigram=4.0)


def pace(flops: float) -> budget.Pace:
    """A machine that makes so many operations a second."""

    def seconds(shape: Shape, batch_size: int) -> float:
        work = 6 * (shape.n_layer * block_parameters(shape.n_embd) + 2048 * shape.n_embd)
        return work * batch_size * shape.context_length / flops

    return seconds


def test_more_time_never_chooses_a_smaller_model_or_a_higher_loss() -> None:
    chosen = [budget.best(budget.options(60 * minutes, TEXT, pace(1e11))) for minutes in (1, 5, 20, 100, 1000)]
    sizes = [choice.shape.n_layer * choice.shape.n_embd**2 for choice in chosen]
    losses = [choice.loss for choice in chosen]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    assert losses == sorted(losses, reverse=True)


def test_the_steps_fit_the_time() -> None:
    for choice in budget.options(300, TEXT, pace(1e11)):
        assert choice.steps * choice.seconds_a_step <= 300 + choice.seconds_a_step


def test_what_is_given_is_kept_and_windows_fit_the_text() -> None:
    (choice,) = budget.options(60, TEXT, pace(1e11), sizes=[(3, 4, 128)], batch_size=7, context_length=48)
    assert choice.shape == Shape(3, 4, 128, 48)
    assert choice.batch_size == 7
    assert all(choice.shape.context_length <= 32 for choice in budget.options(60, TEXT, pace(1e11), most_context=32))


def test_a_model_that_does_not_fit_is_not_chosen_but_the_smallest_is() -> None:
    (only,) = budget.options(1e9, TEXT, pace(1e11), allowed=lambda shape: False)
    assert only.shape[:3] == budget.ladder()[0]


def test_a_second_reading_is_worth_less_than_the_first() -> None:
    assert worth(500, 1000, 15.0) == 500
    gains = [worth(1000 * n, 1000, 15.0) - worth(1000 * (n - 1), 1000, 15.0) for n in range(1, 60)]
    assert gains == sorted(gains, reverse=True)
    assert worth(1e12, 1000, 15.0) == pytest.approx(16_000)


def test_the_law_falls_with_size_and_tokens() -> None:
    assert LAW.loss(1e6, 1e6, TEXT) > LAW.loss(1e7, 1e6, TEXT) > LAW.loss(1e7, 1e7, TEXT) > 0
    assert LAW.loss(1e6, 1e8, TEXT) == pytest.approx(LAW.loss(1e6, 1e9, TEXT), rel=0.01)  # nothing new in the text
