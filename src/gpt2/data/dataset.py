"""Windows over a row of tokens: what a model reads, and at each position the token that it is to predict."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt2.errors import DataError

IGNORED = -100
"""The target that no loss counts: torch's own `ignore_index`."""


class Tokens(Protocol):
    """A row of token ids that is read in parts, such as `gpt2.corpus.shards.TokenShards`."""

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids [start, stop), shape (stop - start,), of any integer dtype."""
        ...


def count_windows(tokens: int, context_length: int, stride: int, offset: int = 0) -> int:
    """Number of whole windows: each needs `context_length` tokens and the one after them as its last target."""
    return max(0, (tokens - offset - context_length - 1) // stride + 1)


def require_windows(tokens: int, context_length: int, stride: int, offset: int = 0) -> int:
    """As `count_windows`, but at least one.

    Raises:
        DataError: the tokens do not fill one window; says how many there are and how many are needed.
    """
    windows = count_windows(tokens, context_length, stride, offset)
    if windows == 0:
        after = f" after the first {offset:,}" if offset else ""
        raise DataError(
            f"{max(0, tokens - offset):,} tokens{after} do not fill one window: a context length of "
            f"{context_length:,} needs {context_length + 1:,}.",
            "Add text, or choose a shorter context length.",
        )
    return windows


def read_windows(tokens: Tokens, starts: np.ndarray, context_length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the windows that begin at `starts`, each int64 of shape (len(starts), context_length)."""
    inputs = np.empty((len(starts), context_length), dtype=np.int64)
    targets = np.empty_like(inputs)
    for row, start in enumerate(starts.tolist()):
        ids = tokens.read(start, start + context_length + 1)
        inputs[row], targets[row] = ids[:-1], ids[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


class GPTDataset(Dataset[tuple[Tensor, Tensor]]):
    """Window i begins at offset + i·stride; its targets are its inputs, one token further on.

    Args:
        tokens: the row of ids.
        context_length: T, tokens in a window.
        stride: tokens from one window to the next; None: T, so that windows do not overlap.
        offset: tokens to leave out at the beginning.

    Raises:
        DataError: the tokens do not fill one window.
    """

    def __init__(self, tokens: Tokens, context_length: int, stride: int | None = None, offset: int = 0) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        self.offset = offset
        self._windows = require_windows(len(tokens), context_length, self.stride, offset)

    def __len__(self) -> int:
        """Number of whole windows."""
        return self._windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window, each int64 of shape (T,). A negative index counts from the end.

        Raises:
            IndexError: there is no such window; so a plain `for` over the dataset ends.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = self.offset + (index % len(self)) * self.stride
        inputs, targets = read_windows(self.tokens, np.array([start]), self.context_length)
        return inputs[0], targets[0]


def evaluation_windows(
    tokens: Tokens, context_length: int, batch_size: int, limit_tokens: int | None = None
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Batches for measuring a loss: every token but the first is a target exactly once, in order.

    The last window may be shorter; its row is filled up with inputs 0 and targets `IGNORED`. Where there are more
    targets than `limit_tokens`, whole windows are taken instead, as many as it allows (at least one), evenly spaced
    from the first on: the same at every call.

    Args:
        tokens: the row of ids.
        context_length: T, tokens in a window.
        batch_size: B, windows in a batch; the last batch may have fewer.
        limit_tokens: targets at most; None: all.

    Returns:
        An iterator of inputs (B, T), targets (B, T), both int64, and the number of targets that count.

    Raises:
        DataError: there are not two tokens.
    """
    targets = len(tokens) - 1
    if targets < 1:
        raise DataError(f"{len(tokens)} tokens are too few to measure a loss: it takes 2.", "Add text to this part.")
    whole = targets // context_length
    if limit_tokens is not None and targets > limit_tokens and whole:
        taken = max(1, limit_tokens // context_length)
        chosen = np.arange(taken) * whole // taken
        tail = 0
    else:
        chosen = np.arange(whole)
        tail = targets % context_length
    return _evaluation_batches(tokens, context_length, batch_size, chosen * context_length, tail)


def _evaluation_batches(
    tokens: Tokens, length: int, batch_size: int, starts: np.ndarray, tail: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    rows = len(starts) + (tail > 0)
    for first in range(0, rows, batch_size):
        part = starts[first : first + batch_size]
        inputs, targets = read_windows(tokens, part, length)
        counted = targets.numel()
        if tail and first + batch_size >= rows:  # this batch is the last
            ids = torch.from_numpy(tokens.read(len(tokens) - tail - 1, len(tokens)).astype(np.int64))
            last_inputs, last_targets = torch.zeros(1, length).long(), torch.full((1, length), IGNORED)
            last_inputs[0, :tail], last_targets[0, :tail] = ids[:-1], ids[1:]
            inputs, targets = torch.cat([inputs, last_inputs]), torch.cat([targets, last_targets])
            counted += tail
        yield inputs, targets, counted
