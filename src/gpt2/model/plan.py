"""What a training run takes: which layout fits the GPUs, how long it runs, what it costs, how often to save. Pure."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gpt2.config.resolve import even_share
from gpt2.model.cost import CHECKPOINT_BYTES, Memory, Sizes, flops_per_token, memory, parameters, tokens_per_second

GIB = 2**30
USABLE = 0.9
"""Share of a GPU's memory to plan for; the rest is CUDA's own, buffers of communication, gaps."""
DISK = 1e9
"""Bytes a second at which a checkpoint is assumed to reach the disk; a local NVMe is faster, network storage slower."""
HOURS_BETWEEN_FAILURES = 50_700
"""Of one GPU: 419 unexpected interruptions of 16,384 GPUs in 54 days (Llama 3, arXiv 2407.21783, section 3.3.4)."""
CHINCHILLA = 20
"""Tokens a parameter at which a given amount of computing gives the lowest loss (Hoffmann et al. 2022)."""
UNCOMPILED_MFU = 0.3
"""Share of a GPU's peak that a model gets without being compiled: torchtitan's 8B got 0.33 on eight H100."""
LONG_ENOUGH = 600
"""Seconds of training, uncompiled, from which on compiling is worth about a minute: that 8B became 1.16 times as fast
by it, 5,762 to 6,667 tokens/s on each GPU, which spares 80 of 600 s."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a GPT-2 without the network, which would need torch."""

    vocab_size: int
    context_length: int
    n_layer: int
    n_embd: int


class Layout(NamedTuple):
    """How a model lies on the GPUs."""

    sharded: bool
    recompute: bool
    gpus: int

    @property
    def name(self) -> str:
        """As it is called in PyTorch."""
        base = "FSDP2" if self.sharded else "DDP" if self.gpus > 1 else "one GPU"
        return base + (" with activation checkpointing" if self.recompute else "")

    def memory(self, sizes: Sizes, sequences: int, needed: int) -> Memory:
        """Bytes on one GPU with so many sequences at once, of the `needed` ones that it has in an optimizer step."""
        return memory(sizes, sequences, self.gpus if self.sharded else 1, self.recompute, sequences < needed)

    def room(self, sizes: Sizes, usable: float, needed: int) -> int:
        """Most sequences at once in `usable` bytes, of `needed` ones in a step; 0: not even one."""
        if self.memory(sizes, needed, needed).total <= usable:
            return needed  # nothing to accumulate, so less to hold than with a little fewer
        return bisect.bisect_left(
            range(1, needed), True, key=lambda sequences: self.memory(sizes, sequences, needed).total > usable
        )


def layouts(gpus: int) -> tuple[Layout, ...]:
    """The layouts in the order in which they are tried: the fastest and simplest first."""
    if gpus == 1:
        return Layout(False, False, 1), Layout(False, True, 1)
    return Layout(False, False, gpus), Layout(True, False, gpus), Layout(True, True, gpus)


class Fit(NamedTuple):
    """Whether and how a model fits; memory in bytes."""

    layout: Layout
    fits: bool
    micro_batch: int
    room: int
    memory: Memory
    usable: float
    rejected: tuple[tuple[str, float], ...]
    """Layouts that were tried first, and the bytes that they would need."""


def fit(sizes: Sizes, gpus: int, gpu_bytes: float, needed: int, micro_batch: int | None = None) -> Fit:
    """Choose the first layout that holds one sequence, or the micro-batch where one is given.

    Args:
        sizes: of the model.
        gpus: how many there are.
        gpu_bytes: memory of one; `USABLE` of it is planned for.
        needed: sequences of each GPU in an optimizer step, at least `micro_batch`. The micro-batch is an
            `even_share` of them.
        micro_batch: sequences at once, where the user has chosen.
    """
    usable = USABLE * gpu_bytes
    rejected: list[tuple[str, float]] = []
    for layout in layouts(gpus):
        room = layout.room(sizes, usable, needed)
        least = layout.memory(sizes, micro_batch or 1, needed)
        if least.total <= usable if micro_batch else room:
            chosen = micro_batch or even_share(needed, room)
            return Fit(layout, True, chosen, room, layout.memory(sizes, chosen, needed), usable, tuple(rejected))
        rejected.append((layout.name, least.total))
    last = layouts(gpus)[-1]
    least = last.memory(sizes, micro_batch or 1, needed)
    return Fit(last, False, micro_batch or 1, last.room(sizes, usable, needed), least, usable, tuple(rejected))


class Schedule(NamedTuple):
    """A run in steps, hours and dollars."""

    accumulation: int
    batch_tokens: int
    steps: int
    mfu: float
    tokens_per_second_per_gpu: float
    tokens_per_second: float
    seconds_per_step: float
    hours: float
    gpu_hours: float
    dollars: float


def schedule(
    sizes: Sizes,
    fitted: Fit,
    tokens: int,
    needed: int,
    peak: float,
    mfu: float,
    dollars_per_gpu_hour: float,
) -> Schedule:
    """Time = tokens · FLOPs a token / (GPUs · peak · MFU). Stops, validation and saving are not in it.

    Args:
        sizes: of the model.
        fitted: layout and micro-batch.
        tokens: to train on, at least; the last step is a whole one.
        needed: sequences of each GPU in an optimizer step, at least.
        peak: of one GPU, FLOP/s.
        mfu: share of the peak that the model gets.
        dollars_per_gpu_hour: price of one GPU.
    """
    gpus = fitted.layout.gpus
    accumulation = math.ceil(needed / fitted.micro_batch)
    batch = accumulation * fitted.micro_batch * gpus * sizes.context_length
    steps = math.ceil(tokens / batch)
    each = tokens_per_second(flops_per_token(sizes), peak, mfu)
    hours = steps * batch / (each * gpus) / 3600
    return Schedule(
        accumulation=accumulation,
        batch_tokens=batch,
        steps=steps,
        mfu=mfu,
        tokens_per_second_per_gpu=each,
        tokens_per_second=each * gpus,
        seconds_per_step=batch / (each * gpus),
        hours=hours,
        gpu_hours=hours * gpus,
        dollars=hours * gpus * dollars_per_gpu_hour,
    )


def compiling_pays_back(sizes: Sizes, tokens: int, gpus: int, peak: float) -> bool:
    """Whether a run is long enough for `torch.compile`, on so many GPUs of this peak, FLOP/s."""
    return tokens / (gpus * tokens_per_second(flops_per_token(sizes), peak, UNCOMPILED_MFU)) >= LONG_ENOUGH


class Saving(NamedTuple):
    """How often to save, and what failures and saving cost together."""

    checkpoint_bytes: int
    save_seconds: float
    hours_between_failures: float
    interval_hours: float
    overhead: float
    """Share of the run that is lost to saving, and to the work since the last checkpoint when a GPU fails."""


def saving(parameters: int, gpus: int, save_seconds: float | None = None, hours: float = math.inf) -> Saving:
    """Young's interval (1974), √(2 · save · time between failures): where saving more costs what it spares.

    Args:
        parameters: of the model.
        gpus: how many can fail.
        save_seconds: that training waits for a checkpoint; else its size at `DISK`.
        hours: of the run, which has one checkpoint at least, at its end.
    """
    size = CHECKPOINT_BYTES * parameters
    seconds = size / DISK if save_seconds is None else save_seconds
    between = HOURS_BETWEEN_FAILURES / gpus
    interval = min(hours, math.sqrt(2 * seconds / 3600 * between))
    return Saving(size, seconds, between, interval, seconds / 3600 / interval + interval / (2 * between))


def sequences_needed(batch_tokens: int, gpus: int, context_length: int, micro_batch: int | None = None) -> int:
    """Sequences of each GPU in an optimizer step of about `batch_tokens` tokens; at least one micro-batch."""
    return max(micro_batch or 1, round(batch_tokens / (gpus * context_length)))


def fewest_gpus(fits: Callable[[int], bool], most: int = 4096) -> int | None:
    """The smallest number of GPUs, a power of two, for which `fits` says yes; None: not even `most`."""
    return next((count for count in (2**n for n in range(most.bit_length())) if fits(count)), None)


def verdict(tokens: int, sizes: Sizes) -> str:
    """A word on the tokens that each parameter gets, beside Chinchilla's 20."""
    ratio = tokens / parameters(sizes)
    if ratio < CHINCHILLA / 4:
        return f"far below Chinchilla's {CHINCHILLA}: a smaller model learns more from the same computing"
    if ratio < CHINCHILLA * 0.7:
        return f"below Chinchilla's {CHINCHILLA}: a somewhat smaller model learns more from the same computing"
    if ratio <= CHINCHILLA * 1.5:
        return f"about Chinchilla's {CHINCHILLA}: the lowest loss for this much computing"
    return f"above Chinchilla's {CHINCHILLA}: a larger model learns as much sooner, this one is cheaper to use"
