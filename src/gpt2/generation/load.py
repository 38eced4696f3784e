"""From a folder to an engine: weights in the wished precision, read by what is fastest here."""

import ctypes
from pathlib import Path

import torch

from gpt2.console import counted, warn
from gpt2.errors import ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.graphs import GraphReader
from gpt2.generation.native import NativeReader, compiled, fits, reads
from gpt2.generation.reader import Reader
from gpt2.model.gpt2 import GPT2
from gpt2.model.precision import LARGEST_IN_FP16, in_precision, largest_weight
from gpt2.runtime import free_memory, pick_weight_precision
from gpt2.tokenizer.store import load_tokenizer
from gpt2.weights.huggingface import load_model


def open_engine(folder: Path, device: torch.device, precision: str = "auto", slots: int = 1) -> Engine:
    """An engine for the model and tokenizer in a folder.

    Args:
        folder: of a checkpoint, or any GPT-2 model with its tokenizer.
        device: where the model shall be.
        precision: of the matrices: fp32, fp16, bf16, int8, or auto: fp16 or bf16, whichever is fastest, or fp32 where
            neither is faster. On a CPU they are so in compiled code only; and what PyTorch reads of a text in them
            depends on how much it reads at once.
        slots: texts at once; the memory of all is taken here.

    Raises:
        CheckpointError: the folder does not hold a GPT-2 with its tokenizer.
        ConfigError: the memory of so many texts is more than the device can still give; or fp16 was asked for, and a
            weight is too large for it.
    """
    model = load_model(folder, device)
    tokenizer = load_tokenizer(folder)
    library = _library(model, torch.float32)
    if precision == "auto" and device.type == "cpu":
        precision = _fastest_on_cpu(model, library)
    model = in_precision(model, pick_weight_precision(precision, device))
    library = _library(model, model.wte.weight.dtype)
    _check_memory(model, slots, device)
    if device.type == "cpu" and model.wte.weight.dtype != torch.float32 and library is None:
        warn(
            f"PyTorch reads this model in {precision}, and rounds by how much it reads at once: the same seed may give "
            "another text beside others. In fp32 it does not."
        )
    return Engine(model, tokenizer, slots, _reader(model, slots, library))


def fastest_reader(model: GPT2, slots: int) -> Reader:
    """Compiled code on a CPU where there is a compiler and the model's sizes suit it; recorded graphs on a GPU of
    NVIDIA's (or AMD's, by ROCm); else PyTorch."""
    return _reader(model, slots, _library(model, model.wte.weight.dtype))


def _fastest_on_cpu(model: GPT2, library: ctypes.CDLL | None) -> str:
    """The best precision for compiled code: fp16 is more exact than bf16, and where it is multiplied at all, faster."""
    if library is None:
        return "fp32"
    return "fp16" if reads(library, torch.float16) and largest_weight(model) <= LARGEST_IN_FP16 else "auto"


def _reader(model: GPT2, slots: int, library: ctypes.CDLL | None) -> Reader:
    if library is not None:
        return NativeReader(model, slots, library)
    return (GraphReader if model.wpe.weight.is_cuda else Reader)(model, slots)


def _library(model: GPT2, weights: torch.dtype) -> ctypes.CDLL | None:
    """Compiled code that reads this model with its matrices in such a format; None where PyTorch has to."""
    if model.wpe.weight.device.type != "cpu" or not fits(model.config):
        return None
    library = compiled()
    return library if library is not None and reads(library, weights) else None


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
