"""Checkpoints: folders that are complete, hashed and verified, or not there.

    runs/NAME/checkpoints/step-00000500/   a Hugging Face GPT-2 folder, our training state, MANIFEST.json
    runs/NAME/best, runs/NAME/last         links to two of them

A checkpoint is written and hashed beside its final name, synced, read again, then renamed. A folder without a manifest
that agrees with its files is no checkpoint. Old ones go only after the new one is in place.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.config.load import nearest
from gpt2.console import warn
from gpt2.errors import CheckpointError, RunError, UserError
from gpt2.files import atomic_folder, read_json, sha256_file, sweep_temporaries
from gpt2.training.manifest import MANIFEST, NewFolder, lacks_nothing, manifest_files, verify

VALIDATION = "validation.json"
WEIGHT_FILE = "model.safetensors"
RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that has been verified, and the run it belongs to (None: a folder from elsewhere)."""

    folder: Path
    run_folder: Path | None
    step: int | None
    settings: dict[str, Any]


def weights_sha256(folder: Path) -> str:
    """The sha256 of a checkpoint's weights: where it has a manifest, that of the manifest."""
    if (folder / MANIFEST).exists():
        return dict(manifest_files(folder))[WEIGHT_FILE]["sha256"]
    return sha256_file(folder / WEIGHT_FILE)


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, if it has one."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else None


def list_checkpoints(run_folder: Path) -> list[Path]:
    """All finished checkpoint folders of a run, oldest first; not yet verified."""
    folders = [path for path in (run_folder / "checkpoints").glob("step-*") if (path / MANIFEST).exists()]
    return sorted((path for path in folders if step_of(path) is not None), key=lambda path: step_of(path) or 0)


def save(
    run_folder: Path,
    step: int,
    write: Callable[[NewFolder], None],
    expected_bytes: int,
    val_loss: float | None,
    keep: int,
) -> Path:
    """Write a checkpoint and move `last`, and `best` if it is; then remove those beyond the newest `keep`.

    The best is the one on disk with the lowest validation loss: one that could not be written is none.

    Args:
        run_folder: the run's folder; the caller holds its lock.
        step: optimizer steps done.
        write: puts the checkpoint's files into the folder that it is given.
        expected_bytes: about what `write` will need; refused at once when the disk has less than 1.2 times that.
        val_loss: validation loss at this step, where it was measured.
        keep: how many of the newest to keep, besides the best; one that lacks something does not count.

    Raises:
        OSError: the disk is full or cannot be written; older checkpoints are as they were.
        CheckpointError: it was written, but reads otherwise; older checkpoints are as they were.
    """
    checkpoints = run_folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    require_room(checkpoints, expected_bytes)
    sweep_temporaries(checkpoints)
    folder = checkpoints / f"step-{step:08d}"
    with atomic_folder(folder) as temporary:
        new = NewFolder(temporary)
        write(new)
        new.text(VALIDATION, json.dumps({"step": step, "val_loss": val_loss}, indent=2) + "\n")
        new.complete()
    lead_to(run_folder, folder)
    protected = {folder, pointed(run_folder, "best")}
    there = list_checkpoints(run_folder)
    oldest = [path for path in there if lacks_nothing(path)][-keep:][0]
    for old in there[: there.index(oldest)]:
        if old not in protected:
            (old / MANIFEST).unlink()  # no longer a checkpoint, even if the removal is interrupted
            shutil.rmtree(old, ignore_errors=True)
    return folder


def adopt(other: Path, run_folder: Path, step: int) -> Path:
    """Put another run's checkpoint among a run's own, so that it does not go when that run removes it.

    Args:
        other: its folder. The files are the same ones, where the file system can do that; else they are copied.
        run_folder: the run's folder; the caller holds its lock.
        step: optimizer steps done.

    Raises:
        CheckpointError: it is no longer whole.
        OSError: the disk is full or cannot be written.
    """
    folder = run_folder / "checkpoints" / f"step-{step:08d}"
    try:
        with atomic_folder(folder) as temporary:
            for path in other.iterdir():
                try:
                    os.link(path, temporary / path.name)
                except FileNotFoundError:
                    raise
                except OSError:
                    shutil.copyfile(path, temporary / path.name)
    except FileNotFoundError:
        raise CheckpointError(
            f"{other} was removed by its run meanwhile.", "Fork that run again, with another --run NAME."
        ) from None
    verify(folder)
    return folder


def require_room(folder: Path, expected_bytes: int) -> None:
    """Stop where a checkpoint of about so many bytes would fill the disk.

    Raises:
        OSError: there is less than 1.2 times that; both numbers are named.
    """
    free, needed = shutil.disk_usage(folder).free, 1.2 * expected_bytes
    if free < needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:,.1f} MB free, {needed / 1e6:,.1f} MB needed", str(folder))


def lead_to(run_folder: Path, newest: Path) -> None:
    """Let `last` lead to the newest checkpoint, and `best` too if its validation loss is the lowest."""
    point(run_folder, "last", newest)
    best = pointed(run_folder, "best")
    if validation_loss(newest) < (math.inf if best is None else validation_loss(best)):
        point(run_folder, "best", newest)


def validation_loss(folder: Path) -> float:
    """The validation loss at a checkpoint; infinite where it was not measured, or cannot be read."""
    try:
        value = read_json(folder / VALIDATION)["val_loss"]
    except (OSError, UserError, KeyError, TypeError):
        return math.inf
    return value if isinstance(value, float) else math.inf


def point(run_folder: Path, name: str, checkpoint: Path) -> None:
    """Let `run_folder/name` lead to a checkpoint: a link, or where links are not allowed a file with its path."""
    target = checkpoint.relative_to(run_folder)
    temporary = run_folder / f".{name}.tmp"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        temporary.symlink_to(target, target_is_directory=True)
    except OSError:
        temporary.write_text(f"{target.as_posix()}\n", encoding="utf-8")
    os.replace(temporary, run_folder / name)


def pointed(run_folder: Path, name: str) -> Path | None:
    """Where `best` or `last` leads, whether or not that is still there."""
    link = run_folder / name
    if link.is_symlink():
        return run_folder / os.readlink(link)
    if link.is_file():
        return run_folder / link.read_text(encoding="utf-8").strip()
    return None


def newest_valid(run_folder: Path, named: Path | None = None) -> Path:
    """The newest checkpoint whose manifest agrees; damaged ones are named and passed over.

    Args:
        run_folder: whose checkpoints.
        named: one that was named as damaged already.

    Raises:
        CheckpointError: there is none.
    """
    candidates = list_checkpoints(run_folder)
    for folder in reversed(candidates):
        try:
            verify(folder)
        except CheckpointError as error:
            if folder != named:
                warn(error.what)
        else:
            if named is not None or folder != candidates[-1]:
                warn(f"Taking {folder} instead.")
            return folder
    last = pointed(run_folder, "last")
    if candidates or (last is not None and last.is_dir()):
        raise CheckpointError(
            f"No checkpoint of {run_folder} is whole.", "Start the run anew under another --run NAME."
        )
    if last is not None:
        raise CheckpointError(
            f"The checkpoints of {run_folder} are gone: {run_folder / 'last'} leads to nothing.",
            f"Put {run_folder / 'checkpoints'} back, or start the run anew under another --run NAME.",
        )
    raise CheckpointError(f"{run_folder} has no checkpoint yet.", "Let it train to its first validation.")


def list_runs(root: Path) -> list[Path]:
    """Run folders under a root, the newest last."""
    runs = [path.parent for path in root.glob("*/run.json")]
    return sorted(runs, key=lambda run: (run / "run.json").stat().st_mtime)


def find_run(run: str | None, root: Path = RUNS) -> Path:
    """The folder of a run given as a path, as a name under `root`, or as None for the newest.

    Raises:
        RunError: there is no such run; those that there are, are named.
    """
    there = list_runs(root)
    if run is None:
        trained = [folder for folder in there if list_checkpoints(folder)]
        if not trained:
            raise RunError(f"There is no trained run under {root}/.", "Train one first: gpt2 train my-folder/")
        return trained[-1]
    for candidate in (Path(run), root / run):
        if (candidate / "run.json").is_file() and not (candidate / WEIGHT_FILE).exists():
            return candidate
    if lost := next((folder for folder in (Path(run), root / run) if list_checkpoints(folder)), None):
        raise record_is_lost(lost)
    guess = nearest(Path(run).name, [folder.name for folder in there])
    fix = f"Did you mean {root / guess}?" if guess else _listed(there) if there else "Train one: gpt2 train …"
    what = f"{run or repr(run)} is no run: it has no run.json." if Path(run).exists() else f"There is no run {run!r}."
    raise RunError(what, fix)


def record_is_lost(folder: Path) -> RunError:
    """What a folder is answered with that holds what a run has left, but no run.json."""
    saved = list_checkpoints(folder)
    return RunError(
        f"{folder} holds a run without its run.json.",
        f"Its checkpoints have copies: cp {saved[-1]}/run.json {folder}/run.json"
        if saved
        else f"Put {folder}/run.json back, or move the folder away.",
    )


def _listed(runs: list[Path], most: int = 10) -> str:
    """The newest of some runs, and how many more there are."""
    more = f" and {len(runs) - most} more" if len(runs) > most else ""
    return f"There are: {', '.join(str(run) for run in reversed(runs[-most:]))}{more}."


def open_checkpoint(run: str | None, which: str = "best", root: Path = RUNS) -> OpenedCheckpoint:
    """Find a checkpoint to read from, verified.

    Args:
        run: name or folder of a run, a checkpoint folder, any Hugging Face GPT-2 folder, or None: the newest run.
        which: of a run, `best`, `last` or the name of a step's folder.
        root: where runs are found by name.

    Raises:
        RunError: no such run or checkpoint.
        CheckpointError: it is damaged, and so is every older one.
    """
    if run is not None and (Path(run) / "config.json").is_file():
        folder = Path(run).resolve()
        if (folder / MANIFEST).exists():
            verify(folder)
        settings = read_json(folder / "run.json") if (folder / "run.json").exists() else {}
        return OpenedCheckpoint(folder, None, step_of(folder), settings)
    run_folder = find_run(run, root)
    target = pointed(run_folder, which) if which in ("best", "last") else run_folder / "checkpoints" / which
    if which not in ("best", "last") and not (target and target.is_dir() and Path(which).name == which):
        names = ", ".join(path.name for path in list_checkpoints(run_folder)) or "none yet"
        raise RunError(f"{run_folder} has no checkpoint {which!r}.", f"There are: best, last, {names}.")
    if target is None or not target.is_dir():
        target = newest_valid(run_folder)
    else:
        try:
            verify(target)
        except CheckpointError as error:
            warn(error.what)
            target = newest_valid(run_folder, named=target)
    return OpenedCheckpoint(target, run_folder, step_of(target), _settings(target))


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return read_json(path) if path.exists() else {}
