"""A run that can start: its folder taken, its run.json written, its data prepared."""

import contextlib
import os
from pathlib import Path
from typing import Any, TypedDict

import torch

from gpt2 import __version__
from gpt2.config.schema import Settings
from gpt2.console import say
from gpt2.corpus.conversations import Conversations
from gpt2.corpus.prepare import Prepared, open_prepared
from gpt2.corpus.sources import Sources
from gpt2.distributed import World
from gpt2.errors import ConfigError, RunError
from gpt2.files import locked
from gpt2.recipes.record import read_status
from gpt2.recipes.run import Job, run
from gpt2.recipes.settled import adapted
from gpt2.runtime import environment, pick_device
from gpt2.signals import Signalled
from gpt2.training import checkpoint


class Begun(TypedDict):
    """What the main process tells the others of a run that can start: JSON values."""

    folder: str
    record: dict[str, Any]
    data: str
    resumed: str | None
    deadline: float | None


def go(begun: Begun | None, started: float, world: World) -> None:
    """Run what the main process has begun, in this process; nothing, if there is nothing left to do."""
    if begun is None:
        return
    prepared = open_prepared(Path(begun["data"]))
    resumed = Path(begun["resumed"]) if begun["resumed"] else None
    begun["record"]["settings"]["distributed"]["processes"] = world.size  # as it is now, however it was begun
    settings = Settings.model_validate(begun["record"]["settings"])
    settings = adapted(settings, pick_device(settings.train.device, world.local_rank if world.size > 1 else None))
    begun["record"]["settings"]["train"]["precision"] = settings.train.precision
    folder = Path(begun["folder"])
    try:
        run(Job(folder, settings, prepared, begun["record"], resumed, started, world, begun["deadline"]))
    except (KeyboardInterrupt, Signalled) as stopped:
        if checkpoint.list_checkpoints(folder):
            raise
        say(f"Stopped before the first step. Go on with: gpt2 train --resume {folder}", style="bold")
        raise SystemExit(stopped.code if isinstance(stopped, Signalled) else 130) from None


def new_record(
    settings: Settings, prepared: Prepared, opened: Sources | Conversations, device: torch.device, **more: Any
) -> dict[str, Any]:
    """run.json of a new run: with the sources' bytes it repeats the run.

    Args:
        settings: complete.
        prepared: its data.
        opened: where they came from.
        device: where it trains.
        more: what is to be remembered besides.
    """
    return {
        "format": 1,
        "gpt2_from_scratch": __version__,
        "settings": settings.model_dump(mode="json"),
        "template": opened.template if isinstance(opened, Sources) else None,
        "sources": hashes(opened),
        "data": prepared.fingerprint,
        "environment": environment(device),
        **more,
    }


def hashes(opened: Sources | Conversations) -> dict[str, str]:
    """The sha256 of each source file, by its path."""
    return {os.path.abspath(file.path): file.sha256 for file in opened.files}


def free_folder(runs: Path, name: str, named: bool) -> Path:
    """The folder of a new run.

    Args:
        runs: where runs are.
        name: of the run.
        named: by the user; otherwise another name is found where it is taken.

    Raises:
        RunError: the name that the user gave is taken, or what is there has lost its run.json.
    """
    folder, number = runs / name, 1
    if named:
        _require_free(folder)
        return folder
    while folder.exists():
        number += 1
        folder = runs / f"{name}-{number}"
    return folder


def require_shares(batch_size: int, processes: int) -> None:
    """Stop where a run is to go on with processes that its batch cannot be divided among.

    Raises:
        ConfigError: it cannot; names numbers of processes for which it can.
    """
    if batch_size % processes:
        fitting = [number for number in range(1, batch_size + 1) if batch_size % number == 0]
        near = [max(n for n in fitting if n < processes), *[n for n in fitting if n > processes][:1]]
        raise ConfigError(
            f"The run's batch of {batch_size} cannot be divided evenly among {processes} processes.",
            f"Go on with {' or '.join(map(str, near))} (--distributed.processes).",
        )


def take(folder: Path, stack: contextlib.ExitStack) -> None:
    """Lock the folder of a new run until `stack` closes.

    Raises:
        RunError: another command has taken it meanwhile.
    """
    stack.enter_context(locked(folder))
    _require_free(folder)


def _require_free(folder: Path) -> None:
    if not (folder / "run.json").exists():
        if checkpoint.list_checkpoints(folder) or (folder / "metrics.jsonl").exists():
            raise checkpoint.record_is_lost(folder)
        return
    status = read_status(folder)
    if status in ("completed", "stopped early"):
        raise RunError(
            f"There is a run {folder} already: {status}.",
            f"Give the new one another name: --run {folder.name}-2. Or go on from its weights: gpt2 train --fork "
            f"{folder} --train.steps …",
        )
    raise RunError(
        f"There is a run {folder} already.",
        f"Go on with it: gpt2 train --resume {folder}. Or give the new one another name: --run {folder.name}-2",
    )
