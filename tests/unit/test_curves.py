from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpt2.recipes import showing


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
