"""The learning rate, and what of a step its weights' mean takes, as pure functions of the step: nothing to save."""

import math
from collections.abc import Callable

from gpt2.config.schema import ScheduleSettings


def multiplier(step: int, steps: int, settings: ScheduleSettings) -> float:
    """Multiple of the peak rate for an optimizer step.

    Linear warm-up from zero, then by name:
        cosine: half a cosine wave down to `final` (Loshchilov & Hutter 2017, equation 5, one period).
        linear: a straight line down to `final`.
        wsd: the peak, then a straight line to `final` over the last `cooldown` (Hu et al. 2024, section 4).
        constant: the peak.

    Where the run was given another end on its way (`replans`), a straight line leads from there to `final`.

    Args:
        step: the step that is about to be made, 0 for the first.
        steps: last step of the run.
        settings: shape and shares.
    """
    plans = [plan for plan in settings.replans if plan[0] <= step]
    if len(plans) <= 1:
        return _planned(step - settings.begins, (plans[0][1] if plans else steps) - settings.begins, settings)
    *earlier, (at, until) = plans
    stands = multiplier(at, steps, settings.model_copy(update={"replans": tuple(earlier)}))
    progress = min(1.0, (step - at + 1) / (until - at + 1))  # the last step still moves
    return stands + (settings.final - stands) * progress


def _planned(step: int, steps: int, settings: ScheduleSettings) -> float:
    warmup = math.ceil(settings.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    if settings.name == "constant":
        return 1.0
    decay_from = warmup
    if settings.name == "wsd":
        decay_from = max(warmup, math.floor((1 - settings.cooldown) * steps))
    if step < decay_from:
        return 1.0
    progress = min(1.0, (step - decay_from + 1) / (steps - decay_from + 1))  # the last step still moves
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if settings.name == "cosine" else 1 - progress
    return settings.final + (1 - settings.final) * fall


def mean_share(step: int, settings: ScheduleSettings) -> float:
    """How far the mean of the weights moves to where they stand after an optimizer step; 0: there is no mean.

    A share of `average`·t steps, t the steps so far: weights of the past count as a power of their step, 1/average - 1
    (polynomial-decay averaging, Shamir & Zhang 2013, section 4). So the mean is over about the last part of the run,
    wherever it stands, and needs not know its end.

    Args:
        step: the step that has been made, 1 after the first.
        settings: `average` and where the run begins.
    """
    return min(1.0, 1 / (settings.average * max(1, step - settings.begins))) if settings.average else 0.0


def build_schedule(settings: ScheduleSettings, steps: int) -> Callable[[int], float]:
    """The schedule of a run: step → multiplier."""
    return lambda step: multiplier(step, steps, settings)
