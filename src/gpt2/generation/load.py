"""From a folder to an engine: weights in the wished precision, read by what is fastest here."""

from pathlib import Path

import torch

from gpt2.console import counted
from gpt2.errors import ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.native import NativeReader, compiled, fits
from gpt2.generation.reader import Reader
from gpt2.model.gpt2 import GPT2
from gpt2.model.precision import in_precision
from gpt2.runtime import free_memory, pick_weight_precision
from gpt2.tokenizer.store import load_tokenizer
from gpt2.weights.huggingface import load_model


def open_engine(folder: Path, device: torch.device, precision: str = "auto", slots: int = 1) -> Engine:
    """An engine for the model and tokenizer in a folder.

    Args:
        folder: of a checkpoint, or any GPT-2 model with its tokenizer.
        device: where the model shall be.
        precision: of the matrices: fp32, bf16, int8, or auto: bf16 where it is faster, else fp32.
        slots: texts at once; the memory of all is taken here.

    Raises:
        CheckpointError: the folder does not hold a GPT-2 with its tokenizer.
        ConfigError: the memory of so many texts is more than the device can still give.
    """
    model = load_model(folder, device)
    tokenizer = load_tokenizer(folder)
    model = in_precision(model, pick_weight_precision(precision, device))
    _check_memory(model, slots, device)
    return Engine(model, tokenizer, slots, fastest_reader(model, slots))


def fastest_reader(model: GPT2, slots: int) -> Reader:
    """Compiled code on a CPU where there is a compiler and the model's sizes suit it; else PyTorch."""
    library = compiled() if fits(model) else None
    return Reader(model, slots) if library is None else NativeReader(model, slots, library)


def _check_memory(model: GPT2, slots: int, device: torch.device) -> None:
    """Refuse more texts than the device has memory for, beside the weights and all else that is in use."""
    sizes = model.config
    row = 2 * sizes.n_layer * sizes.context_length * sizes.n_embd * model.cache_dtype.itemsize  # keys and values
    room = free_memory(device)
    if slots * row > room:
        raise ConfigError(
            f"The keys and values of {counted(slots, 'text')} at once take {slots * row / 2**30:,.1f} GiB; "
            f"{device} has {room / 2**30:,.1f} GiB left.",
            f"Choose {max(1, room // row):,} at most.",
        )
