"""Keeping a run to its time: how many steps will have been made when it is up."""

import math
import time
from collections.abc import Callable

LOOKS = 40
"""How often, in the whole time, the pace is looked at."""
SPARE_SECONDS = 1.0
"""Kept for the end of the process."""


class Pace:
    """Measures how fast steps really go by, apart from the pauses in between.

    Args:
        deadline: when the run is to have ended, on `clock`.
        eval_every: steps from one pause to the next.
        clock: seconds; another one in tests.
    """

    def __init__(self, deadline: float, eval_every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._deadline = deadline
        self._clock = clock
        self._every = eval_every
        self._made = 0
        self._began = self._looked = clock()
        self._paused = self._longest = 0.0

    def paused(self, seconds: float) -> None:
        """Note a pause: a validation with its sample, curves and checkpoint."""
        self._paused += seconds
        self._longest = max(self._longest, seconds)

    def steps(self, step: int, planned: int) -> int | None:
        """Another number of steps for the run, where the planned one would miss the time by more than 2 %.

        To be asked after each step: one that is made again, after going back to a checkpoint, took its time, too.

        Args:
            step: steps done.
            planned: steps of the run, as planned now.
        """
        now = self._clock()
        self._made += 1
        if step >= planned or now - self._looked < (self._deadline - self._began) / LOOKS:
            return None
        self._looked = now
        per_step = max(now - self._began - self._paused, 1e-9) / self._made
        left = self._deadline - SPARE_SECONDS - self._longest - now  # the last pause comes after the last step
        possible = step + max(1, self._fitting(left, per_step, step))
        return possible if abs(possible - planned) > 0.02 * (possible - step) + 1 else None

    def _fitting(self, left: float, per_step: float, step: int) -> int:
        """Steps, and the pauses among them, that fit into so many seconds."""
        until_pause = self._every - step % self._every
        if left <= until_pause * per_step:
            return int(left / per_step)
        left -= until_pause * per_step
        rounds = math.floor(max(0.0, left) / (self._longest + self._every * per_step))
        rest = max(0.0, left - rounds * (self._longest + self._every * per_step) - self._longest)
        return until_pause + rounds * self._every + int(rest / per_step)
