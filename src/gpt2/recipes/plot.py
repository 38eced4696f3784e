"""Plot: the curves of one run, or of several over each other."""

from collections.abc import Sequence
from pathlib import Path

from gpt2.config.commands import PlotSettings
from gpt2.console import say
from gpt2.errors import RunError
from gpt2.evaluation.loss import bits_per_byte
from gpt2.files import read_json, require_folder
from gpt2.training.checkpoint import RUNS, find_run
from gpt2.training.metrics import read_metrics
from gpt2.training.plots import plot_run, plot_runs


def plot(settings: PlotSettings) -> None:
    """Draw runs and say where the pictures are.

    Raises:
        RunError: no such run, or it has made no step yet.
    """
    if settings.out is not None:
        require_folder(Path(settings.out))
    folders = [find_run(run) for run in settings.runs or (None,)]
    for folder in folders:
        if not read_metrics(folder / "metrics.jsonl"):
            raise RunError(f"{folder} has made no step yet: there is nothing to draw.", "Let it train first.")
    if len(folders) == 1:
        folder = folders[0]
        data = folder.parent / ".prepared" / str(read_json(folder / "run.json").get("data")) / "baselines.json"
        references = read_json(data) if data.exists() else {}
        written = plot_run(folder, folder.name, references, Path(settings.out) if settings.out else None)
    else:
        scales, unit = _common_unit(folders)
        written = plot_runs(folders, Path(settings.out) if settings.out else RUNS / "compare", scales, unit)
    say(f"Drawn: {', '.join(map(str, written))}")


def _common_unit(folders: Sequence[Path]) -> tuple[list[float], str]:
    """By what to multiply each run's losses to make them comparable, and their unit then.

    Runs on the same tokens are compared by the token. Where the tokens differ, a token of one stands for more text
    than a token of the other, and only the loss for the same text is comparable: bits a byte.
    """
    if len({read_json(folder / "run.json").get("data") for folder in folders}) == 1:
        return [1.0] * len(folders), "nats a token"
    scales = []
    for folder in folders:
        validation = read_json(folder / "report.json")["stats"]["validation"]
        scales.append(bits_per_byte(1.0, validation["tokens"], validation["text_bytes"]))
    say("These runs were not trained on the same tokens, so their losses are drawn in bits a byte of validation text.")
    return scales, "bits a byte"
