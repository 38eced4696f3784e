"""The best model in a given time: which GPT-2, read in which portions, how often. Pure arithmetic, no torch.

What the text allows comes from the law in `scaling.py`; what the machine can do is measured and given as a function.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gpt2.config.presets import PRESETS, Shape
from gpt2.model.cost import block_parameters
from gpt2.model.scaling import LAW, Law, Text

SIZES = ((2, 2, 64), (2, 3, 96), (3, 4, 128), (4, 5, 160), (4, 6, 192), (5, 8, 256), (6, 6, 384), (8, 8, 512))
"""Layers, heads and width of the ladder below GPT-2's own sizes, which follow."""
OPENAI = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
LEAST_STEPS = 50
"""A run of fewer steps has hardly left its warm-up: no model is chosen that would not come so far."""


class Portions(NamedTuple):
    """How a text is read: tokens of a window, windows of an optimizer step."""

    context_length: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What to train, and what to expect of it."""

    shape: Shape
    batch_size: int
    steps: int
    seconds_a_step: float
    loss: float

    @property
    def tokens(self) -> int:
        """Seen in the whole run."""
        return self.steps * self.batch_size * self.shape.context_length


Pace = Callable[[Shape, int], float]
"""A shape and the sequences of a step → seconds that an optimizer step takes."""


def ladder() -> list[tuple[int, int, int]]:
    """Layers, heads and width of all sizes to choose from, the smallest first."""
    return [*SIZES, *(PRESETS[name][:3] for name in OPENAI)]


def portions(tokens: float) -> Portions:
    """Windows and batches for a run over so many tokens.

    The best batch grows with the tokens seen, about as D^0.4 (Bergsma et al. 2025, arXiv 2505.13738): 2,048 tokens for
    a million. Longer windows teach more, but only a run that has learned what stands next to each other gains by it.
    """
    context = next(length for length, most in CONTEXTS if tokens < most)
    step = 2048 * (max(tokens, 1e6) / 1e6) ** 0.4
    return Portions(context, max(4, round(step / context)))


CONTEXTS = ((64, 1e6), (128, 2e7), (256, 2e8), (512, 2e9), (1024, math.inf))
"""Tokens of a window, for runs over fewer tokens than this. Not measured."""


def options(
    seconds: float,
    text: Text,
    pace: Pace,
    allowed: Callable[[Shape], bool] = lambda shape: True,
    most_context: int = 1024,
    law: Law = LAW,
    sizes: Iterable[tuple[int, int, int]] | None = None,
    batch_size: int | None = None,
    context_length: int | None = None,
) -> list[Choice]:
    """What could be trained in that time, the smallest model first, up to where larger ones get worse.

    Args:
        seconds: for training alone.
        text: what is trained on.
        pace: of this machine.
        allowed: whether a shape may be taken (it fits the memory, say). The smallest size always may.
        most_context: longest window that the text can fill.
        law: from size and tokens to loss.
        sizes: layers, heads and width to choose from; else the ladder.
        batch_size: if it is given already.
        context_length: if it is given already.
    """
    choices: list[Choice] = []
    for size in ladder() if sizes is None else sizes:
        choice = _option(size, seconds, text, pace, most_context, law, batch_size, context_length)
        if choices and (not allowed(choice.shape) or choice.steps < LEAST_STEPS):
            break  # and so are all that are larger
        choices.append(choice)
        if len(choices) > 2 and choices[-1].loss > choices[-2].loss > choices[-3].loss:
            break  # it only gets worse from here
    return choices


def _option(
    size: tuple[int, int, int],
    seconds: float,
    text: Text,
    pace: Pace,
    most_context: int,
    law: Law,
    batch_size: int | None,
    context_length: int | None,
) -> Choice:
    """One size; the portions depend on the tokens, these on the pace, and it on the portions: so in a few rounds."""
    tokens = 0.0
    choice: Choice | None = None
    for _ in range(4):
        read = portions(tokens)
        context = context_length or min(read.context_length, most_context)
        batch = batch_size or max(1, round(read.batch_size * read.context_length / context))
        shape = Shape(*size, context)
        step = pace(shape, batch)
        steps = max(1, int(seconds / step))
        tokens = steps * batch * context
        loss = law.loss(shape.n_layer * block_parameters(shape.n_embd), tokens, text)
        choice = Choice(shape, batch, steps, step, loss)
    assert choice is not None
    return choice


def best(choices: Iterable[Choice]) -> Choice:
    """The one with the lowest expected loss."""
    return min(choices, key=lambda choice: choice.loss)
