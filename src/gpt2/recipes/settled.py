"""What a run's settings leave open to the machine: how long, in which portions, how precisely; and whether it fits."""

import torch

from gpt2.config.gpus import find_gpu
from gpt2.config.resolve import resolve_training
from gpt2.config.schema import Settings
from gpt2.console import warn
from gpt2.corpus.prepare import Prepared
from gpt2.distributed import World
from gpt2.errors import ConfigError
from gpt2.model.cost import ACTIVATION_BYTES, STATE_BYTES, low_rank_parameters, parameters
from gpt2.model.plan import compiling_pays_back
from gpt2.recipes.pretraining import model_config
from gpt2.runtime import activation_memory, lacks_fp16, pick_matrix_precision, pick_precision, whole_memory

FAST = 1e15
"""FLOP/s at the peak of a GPU whose name says nothing."""


def settled(settings: Settings, prepared: Prepared, rows: int, world: World, device: torch.device) -> Settings:
    """The settings with all that is open chosen.

    Args:
        settings: with the model's sizes.
        prepared: the data.
        rows: of an epoch.
        world: the processes.
        device: where they train.

    Raises:
        ConfigError: the least that the run needs is more than the memory there is; or a number format is not for this
            machine, or not for compiling.
    """
    settings = resolve_training(settings, rows, prepared.stats.vocab_size, activation_memory(device), world.size)
    _require_memory(settings, prepared, world, device)
    compiles = _compiles(settings, prepared, world, device)
    precision = _precision(settings.train.precision, compiles, device)
    matrix_precision = pick_matrix_precision(settings.optim.matrix_precision, settings.train.precision, device)
    kind = device.type if world.size > 1 else str(device)
    return settings.model_copy(
        update={
            "train": settings.train.model_copy(update={"device": kind, "precision": precision, "compile": compiles}),
            "optim": settings.optim.model_copy(update={"matrix_precision": matrix_precision}),
            "distributed": settings.distributed.model_copy(update={"processes": world.size}),
        }
    )


def _precision(name: str, compiles: bool, device: torch.device) -> str:
    """What trains in fp16 is compiled by us; torch.compile would have to leave it out."""
    precision = pick_precision(name, device)
    if not (compiles and precision == "fp16"):
        return precision
    if name == "fp16":
        raise ConfigError("Training in fp16 is compiled already.", "Leave --train.compile or --train.precision out.")
    return "fp32"


def adapted(settings: Settings, device: torch.device) -> Settings:
    """The settings of a run that may have begun elsewhere, in a number format that this machine has, which is said."""
    train = settings.train
    if train.precision != "fp16" or not (lacking := lacks_fp16(device)):
        return settings
    here = pick_precision("auto", device)
    warn(f"So far this was trained in fp16, which is not possible here: {lacking}. It goes on in {here}.")
    return settings.model_copy(update={"train": train.model_copy(update={"precision": here})})


def _compiles(settings: Settings, prepared: Prepared, world: World, device: torch.device) -> bool:
    """Conversations have rows of many lengths, each of which would be compiled anew."""
    if settings.train.compile is not None:
        return settings.train.compile
    if device.type != "cuda" or settings.tuning is not None:
        return False
    train, config = settings.train, model_config(settings, prepared)
    assert train.steps, "resolve the training first"
    tokens = train.steps * train.batch_size * config.context_length
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return compiling_pays_back(config, tokens, world.size, FAST if gpu is None else gpu.peak)


def _require_memory(settings: Settings, prepared: Prepared, world: World, device: torch.device) -> None:
    """Stop where the least that the run needs is more than there is: with both numbers, and what to make smaller."""
    config, train = model_config(settings, prepared), settings.train
    shares = world.size if settings.distributed.strategy == "fsdp" else 1
    rank = settings.tuning.lora.rank if settings.tuning else 0
    learned = low_rank_parameters(config, rank) if rank else parameters(config)
    state = (4 * parameters(config) + (STATE_BYTES - 4) * learned) / shares
    rows = 2 * 8 * train.batch_size * config.context_length / world.size  # inputs and targets, 8 bytes an id
    kept = ACTIVATION_BYTES * config.n_layer * config.n_embd * config.context_length * (train.micro_batch_size or 1)
    together = world.size if device.type != "cuda" else 1
    needed, there = together * (state + rows + kept), whole_memory(device)
    if needed > there:
        smaller = "a smaller --model.preset, --model.n-layer or --model.n-embd"
        if settings.tuning is not None:
            smaller = "a smaller base" if rank else "--lora.rank 8, which learns few weights, or a smaller base"
        largest = max(
            (state, smaller),
            (rows, "a smaller --train.batch-size"),
            (kept, "a smaller --train.micro-batch-size or --model.context-length"),
        )
        raise ConfigError(
            f"This run needs {needed / 2**30:,.0f} GiB of memory at least; {device} has {there / 2**30:,.0f} GiB. Its "
            f"model has {parameters(config):,} parameters, at {state * shares / parameters(config):.0f} bytes each in "
            f"training; a step has "
            f"{train.batch_size:,} × {config.context_length:,} tokens.",
            f"Choose {largest[1]}.",
        )
