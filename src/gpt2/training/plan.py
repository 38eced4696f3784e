"""How an optimizer step is made."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """What the trainer is told once, for all steps."""

    micro_batch_size: int
    """Sequences in memory at once."""
    grad_clip: float
    step_seed: Callable[[int], int]
    """Optimizer step → seed of its dropout. So the state of a random generator never has to be saved."""
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    without_sum: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    """While active, backward leaves gradients unsummed between processes."""
    independent: bool = False
    """Whether each process computes without the others until gradients are summed, so that it can begin anew."""
    ended: Callable[[], bool] | None = None
    """Where processes compute together: whether memory has ended in this one, in the forward pass just made."""
    shrunk: Sequence[tuple[int, int]] = ()
    """Step, and sequences at once from there on: where memory has ended so far."""
