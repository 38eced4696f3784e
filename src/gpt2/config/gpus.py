"""GPUs by name, as plain data: what they compute at most, what they hold, what an hour of them costs."""

import math
import re
from typing import NamedTuple

from gpt2.config.load import nearest

SMALL = 200_000_000
"""Parameters below which a model's matrices are too narrow to keep a fast GPU busy."""
KEPT_WHEN_RECOMPUTING = 0.9
"""Share of the MFU that is left when activations are computed twice.

MosaicML's 7B rows: 0.90 on H100, 0.88 on A100, each the mean of the two rows with recomputation nearest in length over
the row without. At an equal micro-batch it would be 3/4; the memory that is gained buys larger ones.
"""
PRICES_OF = "spring 2026"


class GPU(NamedTuple):
    """One model of GPU.

    Peaks are NVIDIA's for dense 16-bit matrix products with 32-bit sums, in FLOP/s: half of the figure "with sparsity".
    Memory is in GiB as PyTorch reports it, a little less than on the box. Dollars are those of an hour on demand at
    specialised clouds; large clouds ask up to twice as much, marketplaces half.
    """

    peak: float
    memory: float
    dollars: float
    mfu: float = 0.40
    mfu_small: float = 0.40
    bf16: bool = True


GPUS: dict[str, GPU] = {
    "A100-40": GPU(peak=312e12, memory=39.4, dollars=1.30, mfu=0.55),
    "A100-80": GPU(peak=312e12, memory=79.2, dollars=1.50, mfu=0.55),
    "H100": GPU(peak=989.4e12, memory=79.2, dollars=3.00, mfu_small=0.35),
    "H200": GPU(peak=989.4e12, memory=139.8, dollars=4.00, mfu_small=0.35),
    "B200": GPU(peak=2250e12, memory=178.4, dollars=6.00, mfu_small=0.35),
    "L4": GPU(peak=121e12, memory=22.0, dollars=0.75),
    "L40S": GPU(peak=362e12, memory=44.4, dollars=1.20),
    "RTX-4090": GPU(peak=165.2e12, memory=23.5, dollars=0.60),
    "RTX-3090": GPU(peak=71e12, memory=23.6, dollars=0.40),
    "T4": GPU(peak=65e12, memory=14.6, dollars=0.40, bf16=False),
}
MOST_GPUS = 1_000_000


def default_mfu(gpu: GPU, parameters: int, gpus: int, recompute: bool = False) -> float:
    """Model FLOPs utilization to count on: the share of the GPUs' peak that the model's own arithmetic gets.

    For compiled PyTorch in bf16 with FlashAttention. The H100's 0.40 is torchtitan's 0.38–0.39 (8B) and the mean of
    MosaicML's 760M, 1B and 3B, 0.40; its 0.35 below 200M parameters was a judgement, and `gpt2 train` itself gets 0.366
    with 124M. The A100's 0.55 is that of MosaicML's 350M, 760M and 1B, 0.56: its peak is a third, so it is easier to
    reach. Fast interconnects lose little: one point of a hundred for each fourfold of GPUs beyond eight (torchtitan 8 →
    128 GPUs: 0.9 points; MosaicML 7B 8 → 512: 4.2).

    Args:
        gpu: one of `GPUS`.
        parameters: of the model.
        gpus: how many work together.
        recompute: whether activations are computed again in the backward pass; see `KEPT_WHEN_RECOMPUTING`.
    """
    base = gpu.mfu_small if parameters < SMALL else gpu.mfu
    scaled = max(0.05, base - 0.01 * math.log(max(gpus, 8) / 8, 4))
    return scaled * KEPT_WHEN_RECOMPUTING if recompute else scaled


def mfu_is_checked(name: str, parameters: int) -> bool:
    """Whether published runs stand behind the default MFU (tests/unit/test_plan.py); elsewhere it is a guess."""
    return name.startswith("A100") or (name == "H100" and parameters >= SMALL)


def _plain(name: str) -> str:
    """A name without what people write differently: case, maker, form factor, hyphens, "GB"."""
    return re.sub(r"[^a-z0-9]|nvidia|geforce|gb|sxm[2-6]?", "", name.lower())


def find_gpu(device_name: str) -> GPU | None:
    """The GPU of a name as the driver gives it, such as "NVIDIA H100 80GB HBM3"; None where it is not known here."""
    plain = _plain(device_name)
    fitting = [name for name in GPUS if all(part in plain for part in map(_plain, name.split("-")))]
    return GPUS[max(fitting, key=len)] if fitting else None


def parse_gpus(text: str) -> tuple[int, str]:
    """The number and name in a text such as 8xH100; a name alone is one GPU, A100 the one with 80 GB.

    Raises:
        ValueError: there is no count of at least 1, or no such GPU; names the nearest one and lists all.
    """
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?([A-Za-z].*?)\s*", text)
    if match is None:
        raise ValueError(f"{text!r} is no number of GPUs and their name, such as 8xH100")
    count = int(match[1]) if match[1] else 1
    if not 1 <= count <= MOST_GPUS:
        raise ValueError(f"{text!r}: 1 to {MOST_GPUS:,} GPUs can be planned for")
    known = {_plain(name): name for name in GPUS} | {"a100": "A100-80"}
    name = known.get(_plain(match[2]))
    if name is None:
        guess = nearest(match[2].upper(), list(GPUS))
        near = f"; the nearest is {guess}" if guess else ""
        raise ValueError(f"{match[2]!r} is no GPU that is known here{near}. Known are {', '.join(GPUS)}")
    return count, name
