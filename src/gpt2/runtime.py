"""The machine: device, number format, random seeds, memory, threads, and one setting of the C allocator."""

import contextlib
import ctypes
import hashlib
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from gpt2 import fp16, memory
from gpt2.console import warn_once
from gpt2.errors import ConfigError

T = TypeVar("T")


def pick_device(name: str, local_rank: int | None = None) -> torch.device:
    """`auto` → CUDA, else Apple's MPS, else the CPU; any other name must be there.

    Args:
        name: auto, cpu, cuda, cuda:1 or mps.
        local_rank: number of this process on this machine, where several train together: each takes its own GPU.

    Raises:
        ConfigError: the name is no device of this machine.
    """
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    elif name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if local_rank is not None and name.startswith("cuda"):
        name = f"cuda:{local_rank}"
    if name not in there:
        raise ConfigError(f"There is no device {name!r} here.", f"This machine has: {', '.join(there)}.")
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> str:
    """Of training: `auto` → bf16 or, on a CPU, fp16 where the device gains from it, and there it does at every size.

    On an AMD EPYC with AVX512-BF16 a training step takes 1.2 (width 48) to 1.9 times (width 384) as long in fp32 as in
    bf16, on an Intel Xeon with AVX512-FP16 and no AMX 1.05 to 1.5 times (124M) as in fp16.

    Raises:
        ConfigError: fp16 is asked for where it is not to be had.
    """
    if name == "fp16" and (lacking := lacks_fp16(device)):
        raise ConfigError(f"Training in fp16 is not possible here: {lacking}.", "Leave it open: --train.precision auto")
    if name != "auto":
        return name
    if gains_from_bf16(device):
        return "bf16"
    if not (lacking := lacks_fp16(device)):
        return "fp16"
    if device.type == "cpu" and fp16.has_instructions():
        warn_once(f"Training is in fp32, whose steps take up to 1.5 times as long as those in fp16: {lacking}.")
    return "fp32"


def lacks_fp16(device: torch.device) -> str:
    """Why a device cannot train in fp16, in words; empty if it can.

    GPUs could, but would lose small gradients: `fp16.cpp` has a scale for each block of numbers.
    """
    return fp16.missing() if device.type == "cpu" else f"it is for CPUs, and this is {device}"


def pick_weight_precision(name: str, device: torch.device) -> str:
    """Of a model that only reads and writes: `auto` → bf16 where there are instructions for it.

    One text waits for the weights to come from memory, and half of the bytes come in half of the time.
    """
    if name != "auto":
        return name
    return "bf16" if multiplies_bf16(device) else "fp32"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16 matrices: CUDA from Ampere on, some CPUs."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def gains_from_bf16(device: torch.device) -> bool:
    """Whether products of bf16 matrices are faster than those of fp32.

    Instructions alone do not say so: AVX512-BF16 takes half of the time of fp32 on an AMD EPYC, and twice as long on an
    Intel Xeon, which is fast with AMX. It goes by the maker and is not tried: what is tried may come out otherwise the
    next time, and then the same command would make another model.
    """
    if device.type != "cpu":
        return multiplies_bf16(device)
    return torch.cpu._is_amx_tile_supported() or (multiplies_bf16(device) and cpu_vendor() == "AuthenticAMD")


@lru_cache
def cpu_vendor() -> str:
    """Who made the processor, as it says itself: AuthenticAMD, GenuineIntel, …; empty where that is not told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # Windows names it last
        return platform.processor().rpartition(", ")[2]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def pick_matrix_precision(name: str, asked: str, device: torch.device) -> str:
    """Of Muon's products: `auto` → bf16 where the device gains from it, unless fp32 is `asked` of the whole run.

    They only turn a direction, and in bf16 end as near to it (docs/experiments.md) in half of the time. In fp16 they
    would take longer: matrices of a model's width are too small for what it costs to narrow them.
    """
    if name != "auto":
        return name
    return "bf16" if asked != "fp32" and gains_from_bf16(device) else "fp32"


def apart(work: Callable[[], T]) -> T:
    """The result of work that is done in a thread of its own, so that its helpers end with it.

    PyTorch's threads are a team for each thread that has computed. As soon as all teams have more members than the
    machine has cores, even if only one team works, each wait between two of its loops is a sleep: writing 16 texts of
    124M in int8 then runs at 450 tokens a second instead of 700, on two cores.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products in the given format, weights and sums in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision == "fp16":
        return fp16.HalfProducts()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A seed of 63 bits for one purpose, such as (seed, "dropout", step): independent of what ran before."""
    text = ":".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or the C allocator, had no memory left to give."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def activation_memory(device: torch.device) -> int:
    """Bytes to plan a micro-batch's activations into.

    On a GPU half of what is free. On a CPU 1.5 GiB at most: larger micro-batches are no faster there.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return min(3 * 2**29, whole_memory(device) // 4)


def whole_memory(device: torch.device) -> int:
    """Bytes of memory that the device has, in use or free; a CPU's and Apple's GPU's is what this process may have."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.whole()


def free_memory(device: torch.device) -> int:
    """Bytes of memory that the device can still give; a CPU's and Apple's GPU's is what this process may still take."""
    if device.type != "cuda":
        return memory.free()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by PyTorch, for what comes
    return torch.cuda.mem_get_info(device)[0] + kept


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed buffers instead of returning them to the kernel.

    By default it gives every activation back and faults it in again, page by page, at the next step: 1.2 to 1.4
    times the time of a step on a CPU. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)


def environment(device: torch.device) -> dict[str, Any]:
    """What a run depended on besides its settings, for run.json: two runs that agree here agree in every bit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
    }
