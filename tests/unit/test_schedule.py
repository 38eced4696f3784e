import pytest

from gpt2.config.schema import ScheduleSettings
from gpt2.optim.schedule import multiplier


def curve(steps: int, **settings: object) -> list[float]:
    chosen = ScheduleSettings.model_validate(settings)
    return [multiplier(step, steps, chosen) for step in range(steps)]


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(name: str) -> None:
    rates = curve(100, name=name, warmup=0.1)
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == 1.0


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_decay_falls_steadily_to_the_final_rate_and_never_stands_still_before(name: str) -> None:
    rates = curve(1000, name=name, warmup=0.0, final=0.1)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.003)
    assert rates[-1] > 0.1


def test_the_middle_of_each_shape() -> None:
    assert curve(1001, name="cosine", warmup=0.0)[500] == pytest.approx(0.5, abs=0.01)
    assert curve(1001, name="linear", warmup=0.0)[250] == pytest.approx(0.75, abs=0.01)
    wsd = curve(1000, name="wsd", warmup=0.0, cooldown=0.4)
    assert wsd[599] == 1.0
    assert wsd[800] == pytest.approx(0.5, abs=0.01)
    assert set(curve(50, name="constant", warmup=0.0)) == {1.0}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_rate(steps: int) -> None:
    for name in ("cosine", "linear", "wsd", "constant"):
        assert all(0 < rate <= 1 for rate in curve(steps, name=name, warmup=0.5))
