"""Train: prepare, check, learn, validate, plot, save. A new run, from its first step."""

import contextlib
import re
from pathlib import Path

import torch

from gpt2 import __version__
from gpt2.config.resolve import resolve_context, resolve_model, resolve_training
from gpt2.config.schema import Settings
from gpt2.console import say
from gpt2.corpus.doctor import require_enough
from gpt2.corpus.prepare import Prepared
from gpt2.data.loader import require_even
from gpt2.distributed import World, joined, world_from_environment
from gpt2.errors import ConfigError, RunError
from gpt2.files import locked, read_json, write_json
from gpt2.model.cost import ACTIVATION_BYTES, STATE_BYTES, parameters
from gpt2.recipes.data import absolute, choose_sources, prepare_data
from gpt2.recipes.in_time import chosen_in_time
from gpt2.recipes.pretraining import build_loader, model_config
from gpt2.recipes.resume import Begun, begin_again, go, hashes
from gpt2.runtime import (
    activation_memory,
    environment,
    pick_device,
    pick_matrix_precision,
    pick_precision,
    whole_memory,
)
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
    with joined(world, device.type == "cuda"), contextlib.ExitStack() as stack:
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
        if read_json(folder / "run.json").get("asked") != asked:
            raise RunError(
                f"{folder} was begun with other settings than these.",
                "Repeat the command that began it, or give this one another name: --run NAME",
            )
        state = folder / "run_state.json"
        finished = state.exists() and read_json(state)["status"] in FINISHED
        begun = None if finished else begin_again(folder, settings.distributed, stack)
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
    settings = _resolved(settings, prepared, world, device, folder.name)
    record = {
        "format": 1,
        "gpt2_from_scratch": __version__,
        "settings": settings.model_dump(mode="json"),
        "asked": asked,
        "template": opened.template,
        "sources": hashes(opened),
        "data": prepared.fingerprint,
        "environment": environment(device),
    }
    stack.enter_context(locked(folder))
    if not auto_resume and (folder / "run.json").exists():
        raise _taken(folder)
    write_json(folder / "run.json", record)
    return Begun(folder=str(folder), record=record, data=str(prepared.folder), resumed=None, deadline=deadline)


def _fitted(settings: Settings, prepared: Prepared) -> Settings:
    """The settings with a context length of which four windows fit both parts of the data."""
    preset = settings.model.context_length or 0
    fitting = resolve_context(preset, min(prepared.stats.train.tokens, prepared.stats.validation.tokens))
    if fitting == preset:
        return settings
    say(f"The text is short: windows of {fitting} tokens instead of {preset} (--model.context-length).", style="dim")
    return settings.model_copy(update={"model": settings.model.model_copy(update={"context_length": fitting})})


def require_memory(settings: Settings, prepared: Prepared, world: World, device: torch.device) -> None:
    """Stop where the least that the run needs is more than there is.

    Raises:
        ConfigError: with both numbers, and what to make smaller.
    """
    config, train = model_config(settings, prepared), settings.train
    shares = world.size if settings.distributed.strategy == "fsdp" else 1
    state = STATE_BYTES * parameters(config) / shares
    rows = 2 * 8 * train.batch_size * config.context_length / world.size  # inputs and targets, 8 bytes an id
    kept = ACTIVATION_BYTES * config.n_layer * config.n_embd * config.context_length * (train.micro_batch_size or 1)
    together = world.size if device.type != "cuda" else 1
    needed, there = together * (state + rows + kept), whole_memory(device)
    if needed > there:
        largest = max(
            (state, "a smaller --model.preset, --model.n-layer or --model.n-embd"),
            (rows, "a smaller --train.batch-size"),
            (kept, "a smaller --train.micro-batch-size or --model.context-length"),
        )
        raise ConfigError(
            f"This run needs {needed / 2**30:,.0f} GiB of memory at least; {device} has {there / 2**30:,.0f} GiB. Its "
            f"model has {parameters(config):,} parameters, at {STATE_BYTES} bytes each in training; a step has "
            f"{train.batch_size:,} × {config.context_length:,} tokens.",
            f"Choose {largest[1]}.",
        )


def _resolved(settings: Settings, prepared: Prepared, world: World, device: torch.device, name: str) -> Settings:
    """All that the settings leave open, chosen."""
    windows = build_loader(settings, prepared, world).windows_per_epoch
    settings = resolve_training(settings, windows, prepared.stats.vocab_size, activation_memory(device), world.size)
    require_memory(settings, prepared, world, device)
    precision = pick_precision(settings.train.precision, device)
    matrix_precision = pick_matrix_precision(settings.optim.matrix_precision, settings.train.precision, device)
    kind = device.type if world.size > 1 else str(device)
    return settings.model_copy(
        update={
            "run": name,
            "sources": absolute(settings.sources),
            "train": settings.train.model_copy(update={"device": kind, "precision": precision}),
            "optim": settings.optim.model_copy(update={"matrix_precision": matrix_precision}),
            "distributed": settings.distributed.model_copy(update={"processes": world.size}),
        }
    )


def _folder(settings: Settings, name_hint: str | None, new: bool) -> Path:
    """The folder of a run: the name that was given, else one after the configuration or first source.

    A new run may not have the name of another that was given, and avoids it where it was not.
    """
    if settings.run is not None:
        folder = RUNS / settings.run
        if new and (folder / "run.json").exists():
            raise _taken(folder)
        return folder
    first = Path(settings.sources[0])
    stem = name_hint or first.stem or first.resolve().stem
    name = re.sub(r"[^\w-]+", "-", stem).strip("-")[:60] or "run"
    number, folder = 1, RUNS / name
    while new and folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def _taken(folder: Path) -> RunError:
    return RunError(
        f"There is a run {folder} already.",
        f"Go on with it: gpt2 train --resume {folder}. Or give the new one another name: --run {folder.name}-2",
    )
