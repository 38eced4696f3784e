"""Train: prepare, check, learn, validate, plot, save. A new run, from its first step."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpt2.config.load import overlay
from gpt2.config.resolve import resolve_context, resolve_model
from gpt2.config.schema import Settings
from gpt2.console import say
from gpt2.corpus.doctor import require_enough
from gpt2.corpus.prepare import Prepared
from gpt2.data.loader import require_even
from gpt2.distributed import World, joined, world_from_environment
from gpt2.errors import RunError
from gpt2.files import write_json
from gpt2.recipes.begun import Begun, free_folder, go, new_record, take
from gpt2.recipes.data import absolute, choose_sources, prepare_data
from gpt2.recipes.in_time import chosen_in_time
from gpt2.recipes.pretraining import build_loader
from gpt2.recipes.record import read_record, read_status
from gpt2.recipes.resume import begin_again
from gpt2.recipes.settled import settled
from gpt2.runtime import pick_device
from gpt2.training import checkpoint

RUNS = checkpoint.RUNS
FINISHED = ("completed", "stopped early")


def train(settings: Settings, started: float, name_hint: str | None = None, auto_resume: bool = False) -> None:
    """Start a new run.

    Args:
        settings: as given; what is open is chosen here.
        started: `time.monotonic()` of the command's begin.
        name_hint: names the run where the settings and sources do not, such as the configuration file's name.
        auto_resume: go on where this command was interrupted, if it was.

    Raises:
        UserError: whatever the user can mend.
    """
    world = world_from_environment()
    device = pick_device(settings.train.device, world.local_rank if world.size > 1 else None)
    given = settings
    settings = settings.model_copy(update={"model": resolve_model(settings.model)})
    with joined(world, device.type == "cuda") as world, contextlib.ExitStack() as stack:
        begun = world.from_main(lambda: _begin(settings, given, world, device, name_hint, auto_resume, stack, started))
        go(begun, started, world)


def _begin(
    settings: Settings,
    given: Settings,
    world: World,
    device: torch.device,
    name_hint: str | None,
    auto_resume: bool,
    stack: contextlib.ExitStack,
    started: float,
) -> Begun | None:
    """Name the run, prepare its data, lock its folder (until `stack` closes), write run.json.

    Where `given` leaves the context length open, a short text gets a shorter one.
    """
    settings = settings.model_copy(update={"sources": choose_sources(settings.sources)})
    asked = settings.model_dump(mode="json", exclude={"run", "sources", "distributed", "tuning"})
    asked["sources"] = list(absolute(settings.sources))
    folder = _folder(settings, name_hint, new=not auto_resume)
    if auto_resume and (folder / "run.json").exists():
        if other := _differing(read_record(folder).get("asked", {}), asked):
            raise RunError(
                f"{folder} was begun with other settings than these: {'; '.join(other[:5])}.",
                "Repeat the command that began it, or give this one another name: --run NAME",
            )
        begun = (
            None
            if read_status(folder) in FINISHED
            else begin_again(folder, settings.distributed.model_dump(exclude_unset=True), stack)
        )
        if begun is None:
            say(f"{folder} is complete. Nothing is left to do.")
        return begun
    minutes = settings.train.minutes
    if minutes is None or "batch_size" in given.train.model_fields_set:  # else one is chosen
        require_even(settings.train.batch_size, world.size)
    prepared, opened = prepare_data(settings, RUNS / ".prepared")
    deadline = started + 60 * minutes if minutes is not None else None
    if given.model.context_length is None:
        settings = _fitted(settings, prepared)
    assert settings.model.context_length
    require_enough(prepared.stats, settings.model.context_length)
    if deadline is not None:
        settings = chosen_in_time(settings, given, prepared, device, world.size, deadline)
    settings = settings.model_copy(update={"run": folder.name, "sources": absolute(settings.sources)})
    rows = build_loader(settings, prepared, world).windows_per_epoch
    settings = settled(settings, prepared, rows, world, device)
    record = new_record(settings, prepared, opened, device, asked=asked)
    take(folder, stack)
    write_json(folder / "run.json", record)
    return Begun(folder=str(folder), record=record, data=str(prepared.folder), resumed=None, deadline=deadline)


def _differing(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Settings that a run was not begun with, in words.

    One that its release did not know yet was as it is by default.
    """
    known = overlay(Settings().model_dump(mode="json"), before)
    return _compared("", known, overlay(known, asked))


def _compared(name: str, before: Any, now: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now})
        return [line for key in keys for line in _compared(f"{name}.{key}", before.get(key), now.get(key))]
    if before == now:
        return []
    shown = [" ".join(map(str, value)) if isinstance(value, list) else value for value in (before, now)]
    then, today = ("not given" if value is None else value for value in shown)
    return [f"{name.removeprefix('.').replace('_', '-')} {then} then, {today} now"]


def _fitted(settings: Settings, prepared: Prepared) -> Settings:
    """The settings with a context length of which four windows fit both parts of the data."""
    preset = settings.model.context_length or 0
    fitting = resolve_context(preset, min(prepared.stats.train.tokens, prepared.stats.validation.tokens))
    if fitting == preset:
        return settings
    say(f"The text is short: windows of {fitting} tokens instead of {preset} (--model.context-length).", style="dim")
    return settings.model_copy(update={"model": settings.model.model_copy(update={"context_length": fitting})})


def _folder(settings: Settings, name_hint: str | None, new: bool) -> Path:
    """The folder of a run: the name that was given, else one after the configuration or first source.

    A new run may not have the name of another that was given, and avoids it where it was not.
    """
    first = Path(settings.sources[0])
    stem = name_hint or first.stem or first.resolve().stem
    name = settings.run or re.sub(r"[^\w-]+", "-", stem).strip("-")[:60] or "run"
    return free_folder(RUNS, name, named=settings.run is not None) if new else RUNS / name
