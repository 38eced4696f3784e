"""The order in which training meets the windows: a formula of seed and position, so nothing is stored and any
number of processes, stopped anywhere, go on with the same batches.
"""

import hashlib
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from gpt2.data.dataset import Tokens, count_windows, read_windows, require_windows
from gpt2.errors import ConfigError, DataError

ROUNDS = 6
ENOUGH_WINDOWS = 32
"""From so many windows on, each epoch gives one up so that its grid can lie anywhere."""


class FingerprintedTokens(Tokens, Protocol):
    """A row of token ids that can say whether it is the same one as before."""

    @property
    def fingerprint(self) -> str:
        """Differs whenever any token does."""
        ...


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int, purpose: str) -> tuple[int, ...]:
    """Six unrelated numbers of 64 bits for this seed, epoch and purpose."""
    digest = hashlib.blake2b(f"{seed}:{epoch}:{purpose}".encode(), digest_size=8 * ROUNDS).digest()
    return struct.unpack(f"<{ROUNDS}Q", digest)


def derived_numbers(seed: int, position: int, purpose: str, count: int) -> list[int]:
    """Numbers of 64 bits that look unrelated, a formula of the arguments."""
    return [_keys(seed, position, f"{purpose}:{number}")[0] for number in range(count)]


def permute(positions: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where each position of an epoch's order lies: a bijection of [0, n), another one for each seed and epoch.

    A Feistel network permutes the smallest square of a power of two that holds n; whoever lands outside [0, n) goes
    through it again until inside ("cycle-walking"), which keeps it a bijection and takes under four passes on average.

    Args:
        positions: numbers in [0, n), any shape.
        n: size of the range, 1 to 2**62.
        seed: any whole number.
        epoch: any whole number.

    Returns:
        Numbers in [0, n) of the same shape, uint64.
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = np.array(_keys(seed, epoch, "order"), dtype=np.uint64)
    out = _feistel(positions.astype(np.uint64), half, mask, keys)
    while (outside := out >= np.uint64(n)).any():
        out[outside] = _feistel(out[outside], half, mask, keys)
    return out


def _feistel(values: np.ndarray, half: np.uint64, mask: np.uint64, keys: np.ndarray) -> np.ndarray:
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << half) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """Each bit of the outcome depends on all bits; multiplication wraps around at 64 bits. (SplitMix64's finish.)"""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def require_even(batch_size: int, world_size: int) -> None:
    """Stop where a batch cannot be divided.

    Raises:
        ConfigError: not evenly among the processes; names batches that can be.
    """
    if batch_size % world_size:
        less, more = batch_size // world_size * world_size, -(-batch_size // world_size) * world_size
        raise ConfigError(
            f"A batch of {batch_size} sequences cannot be divided evenly among {world_size} processes.",
            f"Choose --train.batch-size {f'{less} or {more}' if less else more}.",
        )


class Loader:
    """Batches without end. Sample g of a run is position g mod n of epoch g div n, for n windows in an epoch.

    In every epoch all n windows come once, in an order of that epoch's own. The grid that they are cut from begins
    at an offset of that epoch's own too, so that over the epochs a token is met at different places in its window.
    From 32 windows on, one window fewer makes room for offsets of up to a stride and what the last whole window leaves
    over; below that only the latter is room. The number of windows is the same in all epochs.

    Args:
        tokens: the row of ids, with its fingerprint.
        context_length: T, tokens in a window.
        stride: tokens from one window to the next; None: T.
        batch_size: windows in an optimizer step, over all ranks.
        seed: of the order.
        rank: of this process; it takes rows [rank·B/W, (rank + 1)·B/W) of each batch.
        world_size: W, number of processes.

    Raises:
        DataError: the tokens do not fill one window.
        ConfigError: a batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        tokens: FingerprintedTokens,
        context_length: int,
        stride: int | None,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        require_even(batch_size, world_size)
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        self._tokens = tokens
        self._context_length = context_length
        self._stride = context_length if stride is None else stride
        self._batch_size = batch_size
        self._seed = seed
        self._rows = np.arange(batch_size // world_size) + rank * (batch_size // world_size)
        self._samples = 0
        windows = require_windows(len(tokens), context_length, self._stride)
        self._windows = windows - 1 if windows >= ENOUGH_WINDOWS else windows
        self._offsets = len(tokens) - context_length - (self._windows - 1) * self._stride
        assert count_windows(len(tokens), context_length, self._stride, self._offsets - 1) >= self._windows
        cut = f"{tokens.fingerprint}:{len(tokens)}:{context_length}:{self._stride}"
        self._fingerprint = hashlib.blake2b(cut.encode(), digest_size=8).hexdigest()

    @property
    def windows_per_epoch(self) -> int:
        """n, the windows that make an epoch."""
        return self._windows

    @property
    def epoch(self) -> float:
        """Passes over the windows done so far, a fraction."""
        return self._samples / self._windows

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of this rank's rows of the next batch, each int64 of shape (B/W, T).

        Raises:
            DataError: the tokens on disk are damaged.
        """
        batch = read_windows(self._tokens, self._starts(self._samples + self._rows), self._context_length)
        self._samples += self._batch_size
        return batch

    def _starts(self, samples: np.ndarray) -> np.ndarray:
        """First token of each sample's window."""
        epochs, positions = np.divmod(samples, self._windows)
        starts = np.empty_like(samples)
        for epoch in np.unique(epochs).tolist():  # a batch may reach into the next epoch, or over several short ones
            here = epochs == epoch
            windows = permute(positions[here], self._windows, self._seed, epoch).astype(np.int64)
            offset = _keys(self._seed, epoch, "offset")[0] % self._offsets
            starts[here] = offset + windows * self._stride
        return starts

    def state(self) -> dict[str, Any]:
        """What continues the order from here, at any batch size and number of processes; JSON values."""
        return {"samples": self._samples, "seed": self._seed, "fingerprint": self._fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it was taken with another seed, other tokens, or windows cut in another way.
        """
        for key, mine, meaning in (
            ("fingerprint", self._fingerprint, "its tokens, context length or stride"),
            ("seed", self._seed, "the seed of its order"),
        ):
            if state.get(key) != mine:
                raise DataError(
                    f"This run began with other data: {meaning} differ ({key} {state.get(key)!r}, now {mine!r}).",
                    "Go on with the data and settings that it began with, or begin a new run.",
                )
        samples = state.get("samples")
        if type(samples) is not int or samples < 0:
            raise DataError(
                f"The position in the data is not a number of samples: {samples!r}.", "Take another checkpoint."
            )
        self._samples = samples
