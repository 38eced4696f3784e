"""The watch over each step's numbers: what is none, or far outside of what was seen, does not reach the weights."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW = 128
"""Steps that say what is usual."""
LEAST_SPREAD = {"loss": 0.05, "norm": 0.25}
"""Standard deviations are taken to be at least this: nats, and a share of the mean norm.

A run on little text can be so even that any batch would be six deviations off, while nothing is wrong with it.
"""
PASSED_OVER_AT_MOST = 10
"""Batches in a row; if so many are bad, then it is not the batches."""


class DivergedError(Exception):
    """The numbers stay bad whichever batch is taken: the weights themselves are beyond help."""


class Guard:
    """Judges loss and gradient norm by the last 128 accepted steps.

    Args:
        sigma: a spike is so many standard deviations above the mean; 0: only what is no finite number is refused.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self._seen: dict[str, deque[float]] = {"loss": deque(maxlen=WINDOW), "norm": deque(maxlen=WINDOW)}

    def objection(self, loss: float, norm: float) -> str | None:
        """Why this step must not reach the weights, in words; None, and it is remembered, where it may.

        Args:
            loss: mean of the batch, nats a token.
            norm: of the whole gradient, before clipping.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss:g} and the gradient's norm {norm:g}"
        values = {"loss": loss, "norm": norm}
        for name, value in values.items():
            limit = self._limit(name)
            if value > limit:
                return f"the {name if name == 'loss' else 'gradient norm'} jumped to {value:.4g}, above {limit:.4g}"
        for name, value in values.items():
            self._seen[name].append(value)
        return None

    def _limit(self, name: str) -> float:
        seen = self._seen[name]
        if not self.sigma or len(seen) < WINDOW:
            return math.inf
        mean = statistics.fmean(seen)
        least = LEAST_SPREAD[name] * (mean if name == "norm" else 1.0)
        return mean + self.sigma * max(statistics.pstdev(seen, mean), least)

    def state(self) -> dict[str, Any]:
        """What it has seen; JSON values."""
        return {name: list(values) for name, values in self._seen.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        for name, values in self._seen.items():
            values.clear()
            values.extend(state[name])
