from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpt2.console import counted
from gpt2.recipes import showing
from gpt2.signals import Signalled
from gpt2.training.metrics import Record


def test_a_fifth_of_the_time_at_most_is_drawing_and_what_was_passed_over_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    drawings: list[float] = []

    def draw(*_: object) -> None:
        nonlocal now
        now += 0.5
        drawings.append(now)

    monkeypatch.setattr(showing.time, "monotonic", lambda: now)
    monkeypatch.setattr(showing, "plot_run", draw)
    monkeypatch.setattr(showing, "read_metrics", lambda path: [])
    sizes, stats = SimpleNamespace(n_layer=1, n_embd=16), SimpleNamespace(tokenizer="char")
    settings, prepared = cast(Any, SimpleNamespace(model=sizes)), cast(Any, SimpleNamespace(stats=stats))
    curves = showing.Curves(tmp_path, settings, prepared, {})
    for _ in range(100):  # validations a tenth of a second apart
        curves.redraw()
        now += 0.1
    assert 0.15 < 0.5 * len(drawings) / (now - 100) < 0.22
    now += 2.1
    curves.redraw()
    assert drawings[-1] == now
    assert not curves.outdated
    curves.redraw()
    assert drawings[-1] == now
    assert curves.outdated
    curves.draw()
    assert not curves.outdated


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), Signalled(15)])
def test_a_second_signal_spares_the_last_picture_of_a_stopped_run_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, interruption: BaseException
) -> None:
    def interrupted(*_: object) -> None:
        raise interruption

    monkeypatch.setattr(showing, "read_metrics", interrupted)
    sizes, stats = SimpleNamespace(n_layer=1, n_embd=16), SimpleNamespace(tokenizer="char")
    settings, prepared = cast(Any, SimpleNamespace(model=sizes)), cast(Any, SimpleNamespace(stats=stats))
    curves = showing.Curves(tmp_path, settings, prepared, {})
    curves.complete(stopped=True)
    curves.complete(stopped=False)  # nothing is left to draw
    curves.outdated = True
    with pytest.raises(type(interruption)):
        curves.complete(stopped=False)


def test_the_time_of_a_run_is_that_of_its_commands_from_beginning_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last one until now: what comes after the last step counts, too."""
    records = [Record(step, 0.0, 0, float(seconds), 1.0, 1e-3, 1.0, 200.0) for step, seconds in ((1, 20), (2, 5))]
    settings = cast(Any, SimpleNamespace(train=SimpleNamespace(device="cpu")))
    monkeypatch.setattr(showing.time, "monotonic", lambda: 112.0)
    rows = dict(showing.speed(settings, cast(Any, None), records, started=100.0))
    assert rows["time, with set-up and validations"] == "32 s"


def test_one_is_no_plural() -> None:
    assert [counted(number, "step") for number in (1, 2, 1500)] == ["1 step", "2 steps", "1,500 steps"]
