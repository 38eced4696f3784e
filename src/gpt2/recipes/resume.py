"""Go on with a run: as it was planned, with its rate brought down now, or as another run with other settings."""

import contextlib
import glob
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gpt2.config.agreement import require_effect
from gpt2.config.load import overlay, validate
from gpt2.config.resolve import replanned
from gpt2.config.schema import Settings
from gpt2.console import counted, say
from gpt2.corpus.conversations import Conversations
from gpt2.corpus.python_docs import EMBEDDED
from gpt2.corpus.sources import Sources
from gpt2.distributed import joined, world_from_environment
from gpt2.errors import ConfigError, DataError, RunError
from gpt2.files import locked, read_json, sweep_temporaries, write_json
from gpt2.optim.schedule import multiplier
from gpt2.recipes.begun import Begun, free_folder, go, hashes, require_shares, take
from gpt2.recipes.data import absolute, prepare_data
from gpt2.recipes.record import read_record
from gpt2.recipes.settled import adapted
from gpt2.runtime import pick_device, pick_precision
from gpt2.training import checkpoint
from gpt2.training.metrics import read_metrics

IN_USE = "Wait until it ends, or stop it: Ctrl-C saves it first."


def resume(name: str, distributed: Mapping[str, Any], device: str | None, started: float) -> None:
    """Go on with a run from its newest whole checkpoint, with the settings and data it began with.

    Args:
        name: name or folder of a run.
        distributed: of these settings those that are to differ from before.
        device: where to train, if elsewhere than before.
        started: `time.monotonic()` of the command's begin.

    Raises:
        RunError: no such run, or it is complete, or in use.
        DataError: its sources are not what they were.
        CheckpointError: none of its checkpoints is whole.
    """
    folder = checkpoint.find_run(name)

    def begin(stack: contextlib.ExitStack) -> Begun:
        begun = begin_again(folder, distributed, stack)
        if begun is None:
            raise _complete(folder)
        return begun

    _go_on(device or _trained_on(folder), begin, started)


def finish(
    name: str,
    steps: int | None,
    minutes: float | None,
    distributed: Mapping[str, Any],
    device: str | None,
    started: float,
) -> None:
    """Bring a run's rate down to its end from where it stands, in the time that is left to it.

    Args:
        name: name or folder of a run.
        steps: optimizer steps until the end, or
        minutes: time until the end.
        distributed: of these settings those that are to differ from before.
        device: where to train, if elsewhere than before.
        started: `time.monotonic()` of the command's begin.

    Raises:
        ConfigError: neither or both of steps and minutes.
        RunError: there is nothing to bring down.
    """
    folder = checkpoint.find_run(name)
    if (steps is None) == (minutes is None):
        raise ConfigError(
            "--finish needs to know when the end is." if steps is None else "--finish has two ends: steps and minutes.",
            f"gpt2 train --finish {name} --train.minutes 3   (or --train.steps 500)",
        )

    def begin(stack: contextlib.ExitStack) -> Begun:
        record = read_record(folder)
        settings = Settings.model_validate(overlay(record["settings"], {"distributed": distributed}))
        _hold(folder, stack)
        newest = checkpoint.newest_valid(folder)
        at = checkpoint.step_of(newest) or 0
        assert settings.train.steps
        if multiplier(at, settings.train.steps, settings.schedule) <= settings.schedule.final + 1e-9:
            raise RunError(
                f"{folder} has come to its end: its rate is at its lowest, and more steps would change nothing.",
                f"Start a new run from it, with a rate of its own: gpt2 train --fork {folder} --train.steps …",
            )
        more = steps if steps is not None else _steps_in(folder, 60 * (minutes or 0))
        settings = replanned(settings, at, at + more)
        settings = _in_a_format_of(pick_device(device or settings.train.device), settings)
        train = settings.train.model_copy(update={"minutes": minutes})
        record["settings"] = settings.model_copy(update={"train": train}).model_dump(mode="json")
        begun = _continued(folder, record, newest)
        write_json(folder / "run.json", record)  # not before the data has been found to be what it was
        say(f"Bringing the rate down over {counted(more, 'step')}.")
        begun["deadline"] = started + 60 * minutes if minutes is not None else None
        return begun

    _go_on(device or _trained_on(folder), begin, started)


def fork(name: str, typed: Mapping[str, Any], started: float) -> None:
    """Start a new run from a checkpoint of another: its weights, its optimizer, its place in the data.

    Args:
        name: name or folder of a run, or one of its checkpoint folders.
        typed: settings that differ from the other run's; steps and minutes count from here.
        started: `time.monotonic()` of the command's begin.

    Raises:
        RunError: the new run's name is taken, or there is nothing left to do.
        ConfigError: a setting differs that the checkpoint fixes.
        DataError: the sources are not what they were.
    """
    source = checkpoint.open_checkpoint(name, "last")
    before = Settings.model_validate(source.settings["settings"]) if "settings" in source.settings else None
    if before is None:
        raise RunError(f"{source.folder} has no training state to go on from.", "Fork a run of gpt2 train.")
    settings, more, minutes = _of_fork(before, typed)
    at, run_folder = source.step or 0, source.run_folder or source.folder.parent.parent
    if more is None and minutes is not None:
        more = _steps_in(run_folder, 60 * minutes)
    total = at + more if more is not None else before.train.steps or 0
    if total <= at:
        raise RunError(
            f"{run_folder} has made its {counted(at, 'step')}; a fork needs to know how many more.",
            f"Say it: gpt2 train --fork {name} --train.steps 500   (or --train.minutes 10)",
        )
    runs = run_folder.parent if source.run_folder else checkpoint.RUNS
    folder = free_folder(runs, settings.run or f"{run_folder.name}-fork", named=settings.run is not None)
    settings = settings.model_copy(
        update={
            "run": folder.name,
            "sources": absolute(settings.sources),
            "schedule": settings.schedule.model_copy(update={"begins": at, "replans": ()}),
            "train": settings.train.model_copy(update={"steps": total, "minutes": minutes}),
        }
    )

    def begin(stack: contextlib.ExitStack) -> Begun:
        going = _in_a_format_of(pick_device(settings.train.device), settings, asked=typed)
        asked = {"fork": os.path.abspath(source.folder), **typed}
        origin = {"asked": asked, "forked_from": str(source.folder)}
        record = {**source.settings, "settings": going.model_dump(mode="json"), **origin}
        begun = _continued(folder, record, source.folder)
        take(folder, stack)
        write_json(folder / "run.json", record)
        begun["resumed"] = str(checkpoint.adopt(source.folder, folder, at))
        say(f"{folder} begins where {source.folder} stands, at step {at:,}.")
        begun["deadline"] = started + 60 * minutes if minutes is not None else None
        return begun

    _go_on(settings.train.device, begin, started)


def _of_fork(before: Settings, typed: Mapping[str, Any]) -> tuple[Settings, int | None, float | None]:
    """The settings of a fork but for its length, and that as typed: steps, minutes.

    Raises:
        ConfigError: a setting differs that goes with the weights or the place in the data.
    """
    base = before.model_dump(mode="json", exclude_none=True)
    base["run"] = None
    # What is `auto` was chosen when the run began; but where it trains may be chosen anew.
    typed = {
        name: {k: v for k, v in given.items() if v != "auto" or k == "device"} if isinstance(given, Mapping) else given
        for name, given in typed.items()
    }
    own = dict(typed.get("train", {}))
    length = {name: own.pop(name) for name in ("steps", "minutes", "epochs") if name in own}
    train = validate(Settings, {"train": length}).train
    if len(length) > 1 or train.epochs is not None:
        raise ConfigError("A fork's length is given once, from here on.", "Give --train.steps or --train.minutes.")
    anew = {"shrunk": ()} if "micro_batch_size" in own else {}
    settings = validate(Settings, overlay(base, {**typed, "train": {**own, **anew}}))
    shapes = [s.model.model_dump(exclude={"dropout", "preset"}) for s in (settings, before)]
    if shapes[0] != shapes[1] or settings.tokenizer != before.tokenizer:
        raise ConfigError(
            "A fork keeps the model's shape and the tokenizer: it goes on with their weights.",
            "Leave --tokenizer and --model out, except --model.dropout.",
        )
    if settings.optim.name != before.optim.name:
        raise ConfigError(
            f"A fork keeps the optimizer, {before.optim.name}: it goes on with what that has noted of each weight.",
            "Leave --optim.name out. Its rates can be others: --optim.lr, --optim.matrix-lr.",
        )
    if {"sources", "data"} & typed.keys() or settings.train.seed != before.train.seed:
        raise ConfigError(
            "A fork keeps the text, how it was prepared, and the seed of its order: it goes on from a place in it.",
            "Leave the sources, --data and --train.seed out. For another text, train a new run on it.",
        )
    # Its optimizer may have been chosen for it: whoever brings all rates down need not know which it is.
    require_effect({"schedule": typed.get("schedule", {})}, settings.optim, settings.schedule)
    return settings, train.steps, train.minutes


def _in_a_format_of(device: torch.device, settings: Settings, asked: Mapping[str, Any] | None = None) -> Settings:
    """The settings with a number format that this machine has; one that is `asked` for now must be.

    Raises:
        ConfigError: it is not.
    """
    train = (asked or {}).get("train", {})
    if "precision" in train:
        pick_precision(train["precision"], device)
    return adapted(settings, device)


def _hold(folder: Path, stack: contextlib.ExitStack) -> None:
    """Lock a run's folder until `stack` closes, and mend what an interrupted save has left of its checkpoints."""
    stack.enter_context(locked(folder, IN_USE))
    sweep_temporaries(folder / "checkpoints")


def begin_again(folder: Path, distributed: Mapping[str, Any], stack: contextlib.ExitStack) -> Begun | None:
    """Lock a run's folder (until `stack` closes), find its newest whole checkpoint, and its data as they were.

    None, where it has made its last step and validation: all that may be missing of it then is mended.
    """
    record = read_record(folder)
    _hold(folder, stack)
    had_one = checkpoint.list_checkpoints(folder) or checkpoint.pointed(folder, "last") is not None
    newest = checkpoint.newest_valid(folder) if had_one else None
    train = record["settings"]["train"]
    if newest and (checkpoint.step_of(newest) or 0) >= train["steps"] and not _owes_validation(newest):
        checkpoint.lead_to(folder, newest)
        write_json(folder / "run_state.json", {"status": "completed", "step": checkpoint.step_of(newest)})
        return None
    record["settings"] = overlay(record["settings"], {"distributed": distributed})
    begun = _continued(folder, record, newest or _origin(record))
    if train["minutes"] is not None:
        say(
            f"It goes on to step {train['steps']:,} as planned: --train.minutes counted from its beginning. "
            f"To end it in a given time: gpt2 train --finish {folder} --train.minutes …",
        )
    return begun


def _owes_validation(saved: Path) -> bool:
    """Whether a checkpoint was saved in the middle of a validation."""
    return read_json(saved / "training_state.json")["progress"].get("owed") is not None


def _continued(folder: Path, record: dict[str, Any], newest: Path | None) -> Begun:
    """A run from a checkpoint on, or where it has none from its beginning."""
    settings = Settings.model_validate(record["settings"])
    require_shares(settings.train.batch_size, world_from_environment().size)
    whose = folder if (folder / "run.json").exists() else record["forked_from"]
    gone = [
        path for path in settings.sources if path != EMBEDDED and not (glob.has_magic(path) or os.path.exists(path))
    ]
    if gone:
        raise DataError(
            f"{whose} is trained on {' and '.join(gone)}, which {'are' if len(gone) > 1 else 'is'} not there.",
            "Put back at that path what was there when the run began, or start a new run: gpt2 train … --run NAME",
        )
    prepared, opened = prepare_data(settings, folder.parent / ".prepared")
    if prepared.fingerprint != record["data"]:
        raise DataError(
            f"The data of {whose} changed since the run began{_changed(record, opened)}.",
            "Put the files back as they were, or start a new run: gpt2 train … --run NAME",
        )
    if (folder / "run.json").exists():  # a fork is about to begin where it does not
        say(
            f"Going on from {newest}." if newest else f"{folder} had not come to its first checkpoint: beginning again."
        )
    resumed = str(newest) if newest else None
    return Begun(folder=str(folder), record=record, data=str(prepared.folder), resumed=resumed, deadline=None)


def _complete(folder: Path) -> RunError:
    return RunError(
        f"{folder} is complete: it made all of its steps.",
        f"Talk to it: gpt2 chat {folder}. To train longer: gpt2 train --fork {folder} --train.steps …",
    )


def _origin(record: dict[str, Any]) -> Path | None:
    """The checkpoint of another run that this one began from, if it did."""
    if "forked_from" not in record:
        return None
    origin = Path(record["forked_from"])
    checkpoint.verify(origin)
    return origin


def _trained_on(folder: Path) -> str:
    return read_record(folder)["settings"]["train"]["device"]


def _go_on(device_name: str, begin: Callable[[contextlib.ExitStack], Begun], started: float) -> None:
    world = world_from_environment()
    try:
        device = pick_device(device_name, world.local_rank if world.size > 1 else None)
    except ConfigError as error:
        raise ConfigError(error.what, f"{error.fix} To go on with another: --train.device auto") from None
    with joined(world, device.type == "cuda") as world, contextlib.ExitStack() as stack:
        begun = world.from_main(lambda: begin(stack))
        begun["record"]["settings"]["train"]["device"] = device.type if world.size > 1 else str(device)
        go(begun, started, world)


def _steps_in(folder: Path, seconds: float) -> int:
    """How many steps the run makes in so much time, by its last records; without any a guess, which the pace mends."""
    records = read_metrics(folder / "metrics.jsonl")[-50:]
    if not records:
        return 1000
    per_step = records[-1].tokens / records[-1].step
    speed = sum(record.tokens_per_second for record in records) / len(records)
    return max(1, int(seconds * speed / per_step))


def _changed(record: dict[str, Any], opened: Sources | Conversations) -> str:
    """Which source files differ from those that the run began with."""
    before, now = record["sources"], hashes(opened)
    names = sorted(path for path in {*before, *now} if before.get(path) != now.get(path))
    return f": {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else ""
