"""A run that is to end on time is measured, and given another end where the plan would miss it."""

from gpt2.training.pace import LOOKS, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(
    planned: int, seconds_a_step: float, minutes: float, slower_after: int = 10**9, pause: float = 0.5, every: int = 100
) -> tuple[float, int, int]:
    """A run of steps of a given speed: when it ended, after how many steps, and how often it was replanned."""
    clock = Clock()
    pace = Pace(clock.now + 60 * minutes, every, clock)
    step, changes = 0, 0
    while step < planned:
        clock.now += seconds_a_step * (3 if step >= slower_after else 1)
        step += 1
        until = pace.steps(step, planned)
        if until is not None:
            assert until > step
            planned, changes = until, changes + 1
        if step % every == 0 or step == planned:
            clock.now += pause
            pace.paused(pause)
    return clock.now - 100.0, step, changes


def test_a_plan_that_holds_is_left_alone() -> None:
    ended, steps, changes = run(planned=590, seconds_a_step=0.1, minutes=1, every=1000)
    assert (steps, changes) == (590, 0)
    assert ended < 60


def test_pauses_on_the_way_are_reckoned_with() -> None:
    ended, steps, changes = run(planned=557, seconds_a_step=0.1, minutes=1)
    assert abs(steps - 557) <= 6  # before the first pause nothing is known of pauses
    assert changes <= 2
    assert 57 < ended < 60


def test_too_many_or_too_few_steps_are_corrected() -> None:
    for planned in (50, 300, 5000):
        ended, _, changes = run(planned, seconds_a_step=0.1, minutes=1)
        assert changes >= 1 or planned == 50
        assert ended < 60
        assert ended > 55 or planned == 50


def test_a_machine_that_slows_down_still_ends_in_time() -> None:
    ended, _, changes = run(580, seconds_a_step=0.1, minutes=1, slower_after=250)
    assert 1 <= changes <= LOOKS
    assert 50 < ended < 64


def test_a_long_pause_among_few_steps_is_no_slow_step() -> None:
    ended, steps, _ = run(planned=128, seconds_a_step=0.2, minutes=0.5, pause=3.0, every=32)
    assert 24 < ended < 30
    assert steps > 64


def test_steps_that_are_made_again_count_among_the_steps_made() -> None:
    """A run that began at step 50, came to 80, and went back to its checkpoint of step 50."""
    clock = Clock()
    pace = Pace(clock.now + 60, 1000, clock)
    for step in (*range(51, 81), *range(51, 61)):
        clock.now += 0.1
        until = pace.steps(step, 50 + 590)
        assert until is None or until == 50 + 590 - 30  # thirty of them were for nothing
