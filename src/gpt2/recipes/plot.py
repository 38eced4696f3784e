"""Plot: the curves of one run, or of several over each other."""

from collections.abc import Sequence
from pathlib import Path

from gpt2.config.commands import PlotSettings
from gpt2.console import say
from gpt2.errors import ConfigError, RunError
from gpt2.evaluation.baselines import kept
from gpt2.evaluation.loss import bits_per_byte
from gpt2.files import read_json, require_folder
from gpt2.recipes.record import read_record
from gpt2.training.checkpoint import RUNS, find_run, pointed
from gpt2.training.metrics import read_metrics
from gpt2.training.plots import SUFFIXES, is_drawn_here, plot_run, plot_runs

PICTURES = (".bmp", ".eps", ".gif", ".jpeg", ".jpg", ".pdf", ".ps", ".tif", ".tiff", ".webp")
"""Suffixes that somebody may take for a choice of format."""


def plot(settings: PlotSettings) -> None:
    """Draw runs and say where the pictures are.

    Raises:
        ConfigError: another format than PNG and SVG is wished.
        RunError: no such run, or it has made no step yet; or there is another picture in the place of this.
    """
    out = None if settings.out is None else _stem(settings.out)
    folders = [find_run(run) for run in settings.runs or (None,)]
    runs = [(folder.name, read_metrics(folder / "metrics.jsonl")) for folder in folders]
    for folder, (_, records) in zip(folders, runs, strict=True):
        if not records:
            raise _nothing(folder)
    if len(folders) == 1:
        folder, (name, records) = folders[0], runs[0]
        data = folder.parent / ".prepared" / str(read_record(folder).get("data")) / "baselines.json"
        lines = kept(data)
        references = lines._asdict() if lines is not None else {}
        written = plot_run(records, out or folder / "loss", name, references)
    else:
        scales, unit = _common_unit(folders)
        written = plot_runs(runs, out or RUNS / "compare", scales, unit)
    say(f"Drawn: {', '.join(map(str, written))}")


def _stem(given: str) -> Path:
    """The path of the pictures without suffix, where nothing is in the way."""
    path = Path(given).expanduser()
    if path.suffix.lower() in PICTURES:
        raise ConfigError(
            f"--out {given}: drawn are PNG and SVG, no {path.suffix}.", f"Write --out {Path(given).with_suffix('')}"
        )
    stem = path.with_suffix("") if path.suffix.lower() in SUFFIXES else path
    require_folder(stem)
    for suffix in SUFFIXES:
        picture = stem.with_name(stem.name + suffix)
        if picture.exists() and not (picture.is_file() and is_drawn_here(picture)):
            raise RunError(f"{picture} exists already, and is no picture of gpt2 plot.", "Choose another --out.")
    return stem


def _nothing(folder: Path) -> RunError:
    """Why there is nothing to draw."""
    if not (folder / "metrics.jsonl").exists() and pointed(folder, "last") is not None:
        return RunError(
            f"{folder}/metrics.jsonl is missing: there is nothing to draw.",
            "Put it back from a copy.",
        )
    return RunError(f"{folder} has made no step yet: there is nothing to draw.", "Let it train first.")


def _common_unit(folders: Sequence[Path]) -> tuple[list[float], str]:
    """By what to multiply each run's losses to make them comparable, and their unit then.

    Runs on the same tokens are compared by the token. Where the tokens differ, a token of one stands for more text
    than a token of the other, and only the loss for the same text is comparable: bits a byte.
    """
    if len({read_record(folder).get("data") for folder in folders}) == 1:
        return [1.0] * len(folders), "nats a token"
    scales = []
    for folder in folders:
        validation = read_json(folder / "report.json")["stats"]["validation"]
        scales.append(bits_per_byte(1.0, validation["tokens"], validation["text_bytes"]))
    say("These runs were not trained on the same tokens, so their losses are drawn in bits a byte of validation text.")
    return scales, "bits a byte"
