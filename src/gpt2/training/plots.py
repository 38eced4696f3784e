"""Curves: metrics.jsonl → PNG and SVG. The loop does not know of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.files import atomic_open
from gpt2.training.metrics import Record, elapsed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAKER = "gpt2-from-scratch"
"""What a picture's own metadata say of where it comes from."""
SUFFIXES = (".png", ".svg")
TRAIN, VALIDATION, GREY = "#4c78a8", "#e4572e", "#8a8a8a"
TRAIN_LINE: dict[str, Any] = {"linewidth": 1.2}
VALIDATION_LINE: dict[str, Any] = {"linewidth": 2, "markersize": 3.5}
RUN_COLOURS = ("#4c78a8", "#e4572e", "#54a24b", "#b279a2", "#eeca3b", "#439894", "#9d755d", "#ff9da6")


def smooth(values: Sequence[float], span: int) -> np.ndarray:
    """Running mean over about `span` values before each one: exponential, corrected for its start."""
    keep = 1 - 2 / (span + 1)
    smoothed, weight, mean = np.empty(len(values)), 0.0, 0.0
    for position, value in enumerate(values):
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed[position] = mean / weight
    return smoothed


def thin(length: int, most: int = 2000) -> np.ndarray:
    """Indices of at most about `most` of `length` points, evenly, the last one included."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)) if length else np.arange(0)


def is_drawn_here(path: Path) -> bool:
    """Whether a picture is one of these, by its metadata."""
    with path.open("rb") as file:
        return MAKER.encode() in file.read(4096)


def plot_run(records: Sequence[Record], stem: Path, title: str, references: Mapping[str, float]) -> list[Path]:
    """Draw a run as PNG and SVG: losses, learning rate, gradient norm.

    Args:
        records: of the run; without any, nothing is drawn.
        stem: path of the pictures without suffix.
        title: what stands above.
        references: name → loss of horizontal lines, nats a token.
    """
    if not records:
        return []
    figure = _figure(9, 6.4)
    top, rate, norm = figure.subplot_mosaic([["loss", "loss"], ["rate", "norm"]], height_ratios=[3, 1]).values()
    best = min((record for record in records if record.val_loss is not None), key=_val_loss, default=None)
    label = "validation" if best is None else f"validation: best {best.val_loss:.3f} at step {best.step:,}"
    _draw_losses(top, records, TRAIN, VALIDATION, "training", label)
    shown = [record.train_loss for record in records[len(records) // 50 :]]
    shown += [record.val_loss for record in records if record.val_loss is not None]
    shown += references.values()
    low, high = min(shown), max(shown)
    for name, value in references.items():
        top.axhline(value, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
        top.annotate(
            f"{name} {value:.2f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            color=GREY,
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
    room = 0.06 * (high - low) or 0.1
    top.set_ylim(max(0.0, low - room), high + room)
    top.set_title(title, loc="left", fontsize=11, fontweight="bold")
    top.set_xlabel("optimizer step")
    top.set_ylabel("cross-entropy, nats a token")
    top.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93), ncols=2)
    _tokens_axis(top, records)
    kept = thin(len(records))
    steps = [records[index].step for index in kept]
    rate.plot(steps, [records[index].lr for index in kept], color=TRAIN, linewidth=1.2)
    rate.set_title("learning rate of AdamW (Muon's has the same shape)", loc="left", fontsize=9)
    rate.yaxis.set_major_formatter("{x:g}")  # an offset text above would move the title
    rate.set_ylim(bottom=0)
    norm.plot(steps, [records[index].grad_norm for index in kept], color=TRAIN, linewidth=0.8)
    norm.set_title("gradient norm before clipping", loc="left", fontsize=9)
    norm.set_ylim(bottom=0)
    for axes in (rate, norm):
        axes.set_xlabel("optimizer step", fontsize=8)
    return _write(figure, stem)


def plot_runs(
    runs: Sequence[tuple[str, Sequence[Record]]], stem: Path, scales: Sequence[float], unit: str
) -> list[Path]:
    """Draw the curves of several runs over each other, as PNG and SVG.

    Training loss thin, validation loss thick, over optimizer steps and over seconds.

    Args:
        runs: name and records of each.
        stem: path of the pictures without suffix.
        scales: by what each run's losses, in nats a token, are multiplied.
        unit: what that makes of them.
    """
    from matplotlib.lines import Line2D

    figure = _figure(11, 4.6)
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for position, ((name, own), scale) in enumerate(zip(runs, scales, strict=True)):
        records = [_scaled(record, scale) for record in own]
        colour = RUN_COLOURS[position % len(RUN_COLOURS)]
        best = min((_val_loss(record) for record in records if record.val_loss is not None), default=None)
        label = name if best is None else f"{name}: best {best:.3f}"
        _draw_losses(by_step, records, colour, colour, None, label)
        timed = [replace(record, seconds=at) for record, at in zip(records, elapsed(records), strict=True)]
        _draw_losses(by_time, timed, colour, colour, None, label, over="seconds")
    by_step.set_xlabel("optimizer step")
    by_step.set_ylabel(f"cross-entropy, {unit}")
    by_time.set_xlabel("seconds of training, set-up included")
    figure.suptitle(_compared([name for name, _ in runs]), x=0.01, ha="left", fontsize=11, fontweight="bold")
    kinds = [
        Line2D([], [], color=GREY, label="training", **TRAIN_LINE),
        Line2D([], [], color=GREY, label="validation", marker="o", **VALIDATION_LINE),
    ]
    by_step.legend(handles=[*by_step.get_legend_handles_labels()[0], *kinds], frameon=False, fontsize=9)
    return _write(figure, stem)


def _compared(names: Sequence[str]) -> str:
    """The title of a picture of several runs: as many names as there is room for."""
    shown = [name for count, name in enumerate(names) if sum(map(len, names[: count + 1])) <= 90] or [names[0][:90]]
    return " · ".join(shown) + (f" and {len(names) - len(shown)} more" if len(shown) < len(names) else "")


def _scaled(record: Record, scale: float) -> Record:
    val_loss = None if record.val_loss is None else scale * record.val_loss
    return replace(record, train_loss=scale * record.train_loss, val_loss=val_loss)


def _val_loss(record: Record) -> float:
    assert record.val_loss is not None
    return record.val_loss


def _draw_losses(
    axes: "Axes",
    records: Sequence[Record],
    train_colour: str,
    val_colour: str,
    train_label: str | None,
    val_label: str | None,
    over: str = "step",
) -> None:
    kept = thin(len(records))
    where = [getattr(records[index], over) for index in kept]
    losses = [record.train_loss for record in records]
    axes.plot(where, np.array(losses)[kept], color=train_colour, linewidth=0.6, alpha=0.25)
    axes.plot(
        where, smooth(losses, max(1, len(losses) // 50))[kept], color=train_colour, label=train_label, **TRAIN_LINE
    )
    validated = [record for record in records if record.val_loss is not None]
    axes.plot(
        [getattr(record, over) for record in validated],
        [_val_loss(record) for record in validated],
        color=val_colour,
        marker="o" if len(validated) <= 60 else None,
        label=val_label,
        **(VALIDATION_LINE if len(validated) > 1 else {"linestyle": "", "markersize": 7}),  # one point is no curve
    )


def _tokens_axis(axes: "Axes", records: Sequence[Record]) -> None:
    """A second axis on top: the same steps as tokens seen."""
    per_step = records[-1].tokens / records[-1].step
    tokens = axes.secondary_xaxis(
        "top", functions=(lambda step: np.multiply(step, per_step), lambda token: np.divide(token, per_step))
    )
    tokens.set_xlabel("tokens seen", fontsize=8)
    tokens.tick_params(labelsize=8)
    from matplotlib.ticker import EngFormatter

    tokens.xaxis.set_major_formatter(EngFormatter(sep=" "))


def _figure(width: float, height: float) -> "Figure":
    # Where HOME cannot be written, it takes a temporary folder, and says so in lines that nobody here can act upon.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    # Not pyplot: it keeps every figure, chooses a backend from the environment and takes twice as long to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _write(figure: "Figure", stem: Path) -> list[Path]:
    from matplotlib.ticker import MaxNLocator

    for axes in figure.axes:
        if axes.get_xlabel() == "optimizer step":
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        axes.spines[["right", "top"]].set_visible(False)
        axes.grid(alpha=0.2)
    written = []
    for suffix, named in zip(SUFFIXES, ("Software", "Creator"), strict=True):
        path = stem.with_name(stem.name + suffix)
        with atomic_open(path) as file:
            figure.savefig(file, format=suffix[1:], dpi=130, metadata={named: MAKER})
        figure.set_layout_engine("none")  # the first drawing has found where all goes
        written.append(path)
    return written
