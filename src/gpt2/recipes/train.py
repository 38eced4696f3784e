"""Train: prepare, check, learn, validate, plot, save. A new run, or the rest of one that stopped."""

import os
import re
from pathlib import Path
from typing import Any

from gpt2 import __version__
from gpt2.config.resolve import resolve_model, resolve_training
from gpt2.config.schema import Settings
from gpt2.console import say
from gpt2.corpus.doctor import require_windows
from gpt2.corpus.sources import Sources
from gpt2.errors import DataError, RunError
from gpt2.files import locked, read_json, write_json
from gpt2.recipes.data import absolute, choose_sources, prepare_data
from gpt2.recipes.run import Job, build_loader, run
from gpt2.runtime import activation_memory, environment, pick_device, pick_precision
from gpt2.training import checkpoint

RUNS = checkpoint.RUNS


def train(settings: Settings, started: float, name_hint: str | None = None) -> None:
    """Start a new run.

    Args:
        settings: as given; what is open is chosen here.
        started: `time.monotonic()` of the command's begin.
        name_hint: names the run where the settings and sources do not, such as the configuration file's name.

    Raises:
        UserError: whatever the user can mend.
    """
    settings = settings.model_copy(update={"model": resolve_model(settings.model)})
    settings = settings.model_copy(update={"sources": choose_sources(settings.sources)})
    folder = _new_folder(settings, name_hint)
    device = pick_device(settings.train.device)
    prepared, opened = prepare_data(settings, RUNS / ".prepared")
    assert settings.model.context_length
    require_windows(prepared.stats, settings.model.context_length)
    windows = build_loader(settings, prepared).windows_per_epoch
    settings = resolve_training(settings, windows, prepared.stats.vocab_size, activation_memory(device))
    settings = settings.model_copy(update={"run": folder.name, "sources": absolute(settings.sources)})
    precision = pick_precision(settings.train.precision, device, settings.model.n_embd or 0)
    settings = settings.model_copy(
        update={"train": settings.train.model_copy(update={"device": str(device), "precision": precision})}
    )
    record = {
        "format": 1,
        "gpt2_from_scratch": __version__,
        "settings": settings.model_dump(mode="json"),
        "template": opened.template,
        "sources": _hashes(opened),
        "data": prepared.fingerprint,
        "environment": environment(device),
    }
    with locked(folder):
        if (folder / "run.json").exists():
            raise _taken(folder)
        write_json(folder / "run.json", record)
        run(Job(folder, settings, prepared, record, None, started))


def resume(name: str, started: float) -> None:
    """Go on with a run from its newest whole checkpoint, with the settings and data it began with.

    Raises:
        RunError: no such run, or it is complete, or in use.
        DataError: its sources are not what they were.
        CheckpointError: none of its checkpoints is whole.
    """
    folder = checkpoint.find_run(name)
    record = read_json(folder / "run.json")
    settings = Settings.model_validate(record["settings"])
    with locked(folder):
        newest = checkpoint.newest_valid(folder)
        assert settings.train.steps
        if (checkpoint.step_of(newest) or 0) >= settings.train.steps:
            raise RunError(
                f"{folder} is complete: it made all of its {settings.train.steps:,} steps.",
                f"Talk to it: gpt2 chat {folder}. To train longer, start a run with more --train.steps.",
            )
        prepared, opened = prepare_data(settings, folder.parent / ".prepared")
        if prepared.fingerprint != record["data"]:
            raise DataError(
                f"The data of {folder} changed since the run began{_changed(record, opened)}.",
                "Put the files back as they were, or start a new run: gpt2 train … --run NAME",
            )
        say(f"Going on from {newest}.")
        run(Job(folder, settings, prepared, record, newest, started))


def _new_folder(settings: Settings, name_hint: str | None) -> Path:
    """The folder of a new run: the name that was given, else a free one after the configuration or first source."""
    if settings.run is not None:
        folder = RUNS / settings.run
        if (folder / "run.json").exists():
            raise _taken(folder)
        return folder
    first = Path(settings.sources[0])
    stem = name_hint or first.stem or first.resolve().stem
    name = re.sub(r"[^\w-]+", "-", stem).strip("-")[:60] or "run"
    number, folder = 1, RUNS / name
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def _taken(folder: Path) -> RunError:
    return RunError(
        f"There is a run {folder} already.",
        f"Go on with it: gpt2 train --resume {folder}. Or give the new one another name: --run {folder.name}-2",
    )


def _changed(record: dict[str, Any], opened: Sources) -> str:
    """Which source files differ from those that the run began with."""
    before, now = record["sources"], _hashes(opened)
    names = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    return f": {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""


def _hashes(opened: Sources) -> dict[str, str]:
    return {os.path.abspath(file.path): file.sha256 for file in opened.files}
