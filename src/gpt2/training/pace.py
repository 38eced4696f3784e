"""Keeping a run to its time: how many steps will have been made when it is up."""

import time
from collections.abc import Callable

LOOKS = 40
"""How often, in the whole time, the pace is looked at."""


class Pace:
    """Measures how fast steps really go by, validations and checkpoints included.

    Args:
        deadline: when the run is to have ended, on `clock`.
        step: the step at which it begins.
        clock: seconds; another one in tests.
    """

    def __init__(self, deadline: float, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._deadline = deadline
        self._clock = clock
        self._first = step
        self._began = self._looked = clock()

    def steps(self, step: int, planned: int, pause: float) -> int | None:
        """Another number of steps for the run, where the planned one would miss the time by more than 2 %.

        Args:
            step: steps done.
            planned: steps of the run, as planned now.
            pause: seconds that a validation with its sample, curves and checkpoint takes: the last one comes after the
                last step.
        """
        now = self._clock()
        if step >= planned or now - self._looked < (self._deadline - self._began) / LOOKS or step == self._first:
            return None
        self._looked = now
        per_step = (now - self._began) / (step - self._first)
        possible = step + max(1, int((self._deadline - 1.5 * pause - 1.0 - now) / per_step))
        return possible if abs(possible - planned) > 0.02 * (possible - step) + 1 else None
