"""Tune: a trained model, conversations, and the one trainer. A new run, from its first step."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch

from gpt2.config.schema import Settings, TuningSettings
from gpt2.config.tuning import TuneSettings, as_run, resolve_rates
from gpt2.console import say, warn
from gpt2.corpus.conversations import Conversations
from gpt2.distributed import World, joined, world_from_environment
from gpt2.errors import ConfigError
from gpt2.files import atomic_folder, read_json, write_json
from gpt2.recipes.begun import Begun, free_folder, go, new_record, take
from gpt2.recipes.data import absolute, prepare_data
from gpt2.recipes.settled import settled
from gpt2.recipes.tuning import BASE, Tuning
from gpt2.runtime import pick_device
from gpt2.tokenizer.layout import TOKENIZER_FILE
from gpt2.tokenizer.roles import roles_of
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training import checkpoint
from gpt2.training.checkpoint import OpenedCheckpoint
from gpt2.weights.hub import fetch, is_hub_name
from gpt2.weights.huggingface import CONFIG_FILE, WEIGHT_FILE, config_from_hf

REPLAY = 0.125
"""Share of the rows that are the base's text, where it is at hand; docs/experiments.md."""


def tune(settings: TuneSettings, started: float) -> None:
    """Start a new run on conversations.

    Args:
        settings: as given; what is open is chosen here.
        started: `time.monotonic()` of the command's begin.

    Raises:
        UserError: whatever the user can mend.
    """
    if not settings.sources:
        raise ConfigError(
            "There is nothing to tune on: no conversations were named.",
            f"gpt2 tune {settings.base} faq.csv   (or a .jsonl file, or python-docs)",
        )
    if settings.lora.rank and settings.distributed.strategy == "fsdp":
        raise ConfigError("LoRA keeps the weights whole in each process.", "Choose --distributed.strategy ddp.")
    if settings.lora.alpha is not None and not settings.lora.rank:
        raise ConfigError(
            "--lora.alpha is of LoRA's products, and there are none: all weights are learned.",
            "Set --lora.rank, such as 8, or leave --lora.alpha out.",
        )
    world = world_from_environment()
    device = pick_device(settings.train.device, world.local_rank if world.size > 1 else None)
    with joined(world, device.type == "cuda") as world, contextlib.ExitStack() as stack:
        go(world.from_main(lambda: _begin(settings, world, device, stack, started)), started, world)


def _begin(
    given: TuneSettings, world: World, device: torch.device, stack: contextlib.ExitStack, started: float
) -> Begun:
    """Find the base, prepare the conversations, lock the run's folder (until `stack` closes), write run.json."""
    base = _find_base(given.base)
    stem = re.sub(r"[^\w-]+", "-", (base.run_folder or base.folder).name).strip("-")[:60]
    folder = free_folder(checkpoint.RUNS, given.run or f"{stem}-tuned", named=given.run is not None)
    settings = _with_base(as_run(given), given, base).model_copy(
        update={"sources": absolute(given.sources), "run": folder.name}
    )
    prepared, opened = prepare_data(settings, checkpoint.RUNS / ".prepared")
    settings = _for_kind(settings, given, base, preferences=isinstance(opened, Conversations) and opened.preferences)
    assert settings.tuning
    if not settings.tuning.preferences and not settings.tuning.replay:
        say("Nothing of the base's own text is replayed: it will forget some of what it knows.", style="dim")
    task = Tuning(folder, settings, prepared, world)
    rows = task.loader().batches_per_epoch * settings.train.batch_size
    settings = settled(settings, prepared, rows, world, device)
    assert settings.tuning
    kept = settings.tuning.model_copy(update={"base": str((folder / BASE).absolute())})
    settings = settings.model_copy(update={"tuning": kept})
    turns = max(task.turns(), base.settings.get("turns", 0))
    record = new_record(settings, prepared, opened, device, turns=turns)
    take(folder, stack)
    _keep(base.folder, folder / BASE)
    write_json(folder / "run.json", record)
    minutes = settings.train.minutes
    deadline = started + 60 * minutes if minutes is not None else None
    return Begun(folder=str(folder), record=record, data=str(prepared.folder), resumed=None, deadline=deadline)


def _find_base(name: str) -> OpenedCheckpoint:
    """A run, a checkpoint or a folder; else a model of the hub, fetched once."""
    # runs/NAME looks like a model of the hub, too; but where its first part is a folder, it is a slip of the fingers.
    here = Path(name).exists() or (checkpoint.RUNS / name).exists() or ("/" in name and Path(name).parent.is_dir())
    if not here and is_hub_name(name):
        return checkpoint.open_checkpoint(str(fetch(name, checkpoint.RUNS / ".hub")))
    return checkpoint.open_checkpoint(name)


def _keep(base: Path, kept: Path) -> None:
    """The base's weights and tokenizer in the run, which then needs no other: links, where the disk allows them."""
    with atomic_folder(kept) as temporary:
        for name in (CONFIG_FILE, WEIGHT_FILE, TOKENIZER_FILE):
            try:
                os.link((base / name).resolve(), temporary / name)
            except OSError:
                shutil.copyfile(base / name, temporary / name)


def _with_base(settings: Settings, given: TuneSettings, base: OpenedCheckpoint) -> Settings:
    """The settings of the run with what its base fixes: the sizes, the tokenizer, the text to replay."""
    tokenizer = load_tokenizer(base.folder)
    sizes = config_from_hf(read_json(base.folder / "config.json"), base.folder / "config.json")
    if given.lora.rank > sizes.n_embd:
        raise ConfigError(
            f"--lora.rank {given.lora.rank} is more than {given.base}'s width of {sizes.n_embd}: its products would be "
            "larger than the weights.",
            "Choose a small one, such as 8; or 0: all weights are learned.",
        )
    text = _text_of(base)
    if text is None and given.replay:
        raise ConfigError(
            f"The text that {given.base} was trained on is not at hand, so that it cannot be replayed.",
            "Leave --replay out, or tune a run that was trained here.",
        )
    replay = (REPLAY if given.replay is None else given.replay) if text else 0.0
    shape = {name: getattr(sizes, name) for name in ("n_layer", "n_head", "n_embd", "context_length")}
    return settings.model_copy(
        update={
            "tokenizer": tokenizer.name,
            "model": settings.model.model_copy(update={**shape, "dropout": given.dropout}),
            "tuning": TuningSettings(
                origin=str(base.folder),
                base=str(base.folder.absolute()),
                tokenizer=tokenizer.fingerprint(),
                template=base.settings.get("template"),
                text=text,
                prompt=given.prompt,
                response=given.response,
                context=given.context,
                system=given.system,
                rejected=given.rejected,
                beta=given.beta,
                replay=replay,
                lora=given.lora,
            ),
        }
    )


def _for_kind(settings: Settings, given: TuneSettings, base: OpenedCheckpoint, preferences: bool) -> Settings:
    """The settings with what depends on what is learned: answers, or preferences."""
    assert settings.tuning and settings.model.n_embd
    tuning = settings.tuning
    if not preferences and "beta" in given.model_fields_set:
        raise ConfigError(
            "--beta is of preferences, and here each question has one answer.",
            "Name the column of the worse answers with --rejected, or leave --beta out.",
        )
    if preferences and given.replay:
        raise ConfigError("No text can be replayed among pairs of answers.", "Leave --replay out.")
    if preferences and given.distributed.strategy == "fsdp":
        raise ConfigError(
            "Learning preferences keeps the weights whole in each process.", "Choose --distributed.strategy ddp."
        )
    if preferences and roles_of(load_tokenizer(base.folder)) is None:
        warn(f"{given.base} has not learned to answer yet: tune it on answers first, then on preferences.")
    before = base.settings.get("settings", {}).get("optim", {}).get("name")
    low_rank = given.lora.rank > 0
    return settings.model_copy(
        update={
            "optim": resolve_rates(settings.optim, settings.model.n_embd, before, low_rank, preferences),
            "tuning": tuning.model_copy(
                update={"preferences": preferences, "replay": 0.0 if preferences else tuning.replay}
            ),
        }
    )


def _text_of(base: OpenedCheckpoint) -> str | None:
    """The folder of the tokens that a run was trained on, before it was tuned, if they are still there."""
    data = base.settings.get("data")
    if base.run_folder is None or not isinstance(data, str):
        return None
    tuned = base.settings["settings"].get("tuning")
    folder = Path(tuned["text"] or ".") if tuned else base.run_folder.parent / ".prepared" / data
    if not (folder / "MANIFEST.json").is_file():
        warn(f"The prepared text that {base.run_folder} was trained on is gone: nothing of it is replayed.")
        return None
    return str(folder.absolute())
