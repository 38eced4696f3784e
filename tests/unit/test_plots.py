"""The curves: what a picture says of itself, and that its parts stand where they belong."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gpt2.training import plots
from gpt2.training.metrics import Record


def records(steps: int, validated: int) -> list[Record]:
    every = steps // validated
    return [
        Record(n, n / 10, n * 100, n * 0.5, 4 / n, 1e-3, 0.5, 200.0, 4.0 / n if n % every == 0 else None)
        for n in range(1, steps + 1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures as they are written."""
    figures: list[Figure] = []
    write = plots._write

    def kept(figure: Figure, stem: Path) -> list[Path]:
        figures.append(figure)
        return write(figure, stem)

    monkeypatch.setattr(plots, "_write", kept)
    return figures


def test_the_titles_of_the_lower_panels_stand_at_one_height(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.plot_run(records(20, 2), tmp_path / "loss", "a run", {"bigram": 3.0})
    (figure,) = drawn
    lower = [axes for axes in figure.axes if axes.get_xlabel() == "optimizer step"][-2:]
    heights = [axes._left_title.get_window_extent().y0 for axes in lower]
    assert heights[0] == pytest.approx(heights[1], abs=0.5)


def test_several_runs_have_a_title_and_a_legend_of_the_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.plot_runs([("one", records(20, 2)), ("two", records(20, 1))], tmp_path / "compare", [1.0, 1.0], "nats")
    (figure,) = drawn
    assert figure.get_suptitle() == "one · two"
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()][-2:] == ["training", "validation"]
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_markersize() for line in points] == [7]


def test_many_runs_are_counted_where_their_names_have_no_room() -> None:
    assert plots._compared(["x" * 40, "y" * 40, "z" * 40, "w"]) == f"{'x' * 40} · {'y' * 40} and 2 more"
    assert plots._compared(["x" * 200]) == "x" * 90


def test_a_picture_says_where_it_comes_from(tmp_path: Path) -> None:
    for path in plots.plot_run(records(4, 2), tmp_path / "loss", "a run", {}):
        assert plots.is_drawn_here(path)
    (tmp_path / "foreign.png").write_bytes(b"\x89PNG")
    assert not plots.is_drawn_here(tmp_path / "foreign.png")
