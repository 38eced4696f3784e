"""The watch over each step's numbers: what is none, or far outside of what was seen, does not reach the weights."""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any

WINDOW = 128
"""Steps that say what is usual."""
LEAST_LOSS_SPREAD = 0.05
LEAST_NORM_SPREAD = 0.5
"""Standard deviations are taken to be at least this: nats, and a share of the mean norm.

A run on little text can be so even that any batch would be six deviations off, while nothing is wrong with it. Norms
have a long tail besides: in 18,000 steps of 64 tokens each, which taught 6,000 parameters, the highest were 3.3 times
the mean of those before, with deviations of a quarter. Clipping takes what is harmful from so little.
"""
PASSED_OVER_AT_MOST = 10
"""Batches in a row; if so many are bad, then it is not the batches."""


class DivergedError(Exception):
    """The numbers stay bad whichever batch is taken: the weights themselves are beyond help."""


class Guard:
    """Judges loss and gradient norm by the last 128 accepted steps.

    Batches of conversations have few or many answer tokens, and the mean over few scatters more: with one over the root
    of their number; and so does the norm of its gradient, most of which is noise. A jump is therefore what is too high
    by both measures: as it is, and times that root. Where all batches have as many tokens, the two are one.

    Args:
        sigma: a spike is so many standard deviations above the mean; 0: only what is no finite number is refused.
    """

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma
        self._seen: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)
        """Loss, norm and counted tokens."""

    def objection(self, loss: float, norm: float, counted: float) -> str | None:
        """Why this step must not reach the weights, in words; None, and it is remembered, where it may.

        Args:
            loss: mean of the batch, nats a token.
            norm: of the whole gradient, before clipping.
            counted: tokens that the loss is the mean of, over all processes; at least 1.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss:g} and the gradient's norm {norm:g}"
        if self.sigma and len(self._seen) == WINDOW:
            if loss > (limit := self._loss_limit(counted)):
                return f"the loss jumped to {loss:.4g}, above {limit:.4g}, the limit by the last {WINDOW} steps"
            if norm > (limit := self._norm_limit(counted)):
                return (
                    f"the gradient norm jumped to {norm:.4g}, above {limit:.4g}, the limit by the last {WINDOW} steps"
                )
        self._seen.append((loss, norm, counted))
        return None

    def _loss_limit(self, counted: float) -> float:
        plain = self._above([loss for loss, _, _ in self._seen], LEAST_LOSS_SPREAD)
        mean = sum(loss * tokens for loss, _, tokens in self._seen) / sum(tokens for *_, tokens in self._seen)
        of_a_token = math.sqrt(statistics.fmean((loss - mean) ** 2 * tokens for loss, _, tokens in self._seen))
        return max(plain, mean + self.sigma * max(of_a_token / math.sqrt(counted), LEAST_LOSS_SPREAD))

    def _norm_limit(self, counted: float) -> float:
        norms, scaled = [norm for _, norm, _ in self._seen], [norm * math.sqrt(n) for _, norm, n in self._seen]
        plain = self._above(norms, LEAST_NORM_SPREAD * statistics.fmean(norms))
        return max(plain, self._above(scaled, LEAST_NORM_SPREAD * statistics.fmean(scaled)) / math.sqrt(counted))

    def _above(self, values: list[float], least: float) -> float:
        """So many deviations above the mean; a deviation is `least` at least."""
        mean = statistics.fmean(values)
        spread = math.sqrt(statistics.fmean((value - mean) ** 2 for value in values))
        return mean + self.sigma * max(spread, least)

    def state(self) -> dict[str, Any]:
        """What it has seen; JSON values."""
        return {"seen": [list(step) for step in self._seen]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; from one of before tokens were counted as if nothing had been seen."""
        self._seen.clear()
        self._seen.extend((loss, norm, counted) for loss, norm, counted in state.get("seen", ()))
