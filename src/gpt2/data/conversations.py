"""Rows of one conversation each: what is learned of it, and batches of rows of about one length.

A row never holds two conversations, so none can see another, and each begins at position 0: there is nothing to mask
beyond the causal order. A row is filled up at its end, where no counted target is and nothing counted looks. Sorting by
length keeps that filling small; see docs/decisions/0010-rows-of-one-conversation.md for what it costs.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gpt2.data.dataset import IGNORED
from gpt2.data.loader import FingerprintedTokens, derived_numbers, permute
from gpt2.errors import ConfigError, DataError
from gpt2.tokenizer.roles import Roles

POOL = 32
"""Batches whose conversations are sorted together: enough for even lengths, few enough for a changing company."""


class ConversationTokens(FingerprintedTokens, Protocol):
    """Conversations as a row of ids, such as `gpt2.corpus.shards.TokenShards`."""

    def document_ends(self) -> np.ndarray:
        """The position after each conversation's last id, shape (n,); a mark follows, then the next one begins."""
        ...


def answer_targets(ids: np.ndarray, roles: Roles) -> np.ndarray:
    """What each id of a conversation but the last is to predict: the ids of answers and their ends, else `IGNORED`.

    Args:
        ids: of one conversation, shape (n,).
        roles: the marks in it.

    Returns:
        Shape (n - 1,), int64.
    """
    marks = np.where(np.isin(ids, roles.all), np.arange(len(ids)), 0)
    speaking = ids[np.maximum.accumulate(marks)]  # the mark at or before each place; before the first: no answer
    return np.where(speaking[:-1] == roles.assistant, ids[1:].astype(np.int64), IGNORED)


class ConversationRows:
    """The conversations of a part, each a row.

    Args:
        tokens: their ids.
        roles: the marks in them.
    """

    def __init__(self, tokens: ConversationTokens, roles: Roles) -> None:
        self.tokens, self.roles = tokens, roles
        ends = tokens.document_ends().astype(np.int64)
        self._starts = np.concatenate([[0], ends[:-1] + 1])
        self.lengths = ends - self._starts - 1
        """Places of each row: one fewer than its ids, as the last is a target only."""

    def __len__(self) -> int:
        """Number of conversations."""
        return len(self._starts)

    def ids(self, index: int) -> np.ndarray:
        """The ids of a conversation, shape (n,), int64."""
        start = int(self._starts[index])
        return self.tokens.read(start, start + int(self.lengths[index]) + 1).astype(np.int64)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some conversations, each int64 of shape (B, longest of them)."""
        shape = (len(indices), int(self.lengths[indices].max()))
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for row, index in enumerate(indices.tolist()):
            ids = self.ids(index)
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], answer_targets(ids, self.roles)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def counted(self, targets: Tensor) -> int:
        """How many terms of the loss targets give."""
        return int((targets != IGNORED).sum())


class Rows(Protocol):
    """What a loader makes batches of: `ConversationRows`, or `gpt2.data.preferences.PreferenceRows`."""

    tokens: ConversationTokens
    lengths: np.ndarray

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some of them, as long as the longest."""
        ...

    def counted(self, targets: Tensor) -> int:
        """How many terms of the loss targets give."""
        ...


def conversation_batches(rows: Rows, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Every row once, shortest first: inputs, targets, and the number of terms of the loss."""
    order = np.argsort(rows.lengths, kind="stable")
    for first in range(0, len(rows), batch_size):
        inputs, targets = rows.batch(order[first : first + batch_size])
        yield inputs, targets, rows.counted(targets)


class ConversationLoader:
    """Batches without end; the order is a formula of seed and position, as `Loader`'s is.

    An epoch is as many whole batches as the conversations fill; which few are left over differs from epoch to epoch.
    Of every batch, a share of the rows is running text instead, to be predicted token by token: a spell of what the
    model was trained on before, as long as the batch's longest conversation, against its forgetting.

    Args:
        rows: the conversations, or pairs of them (then without text).
        batch_size: rows of an optimizer step, over all ranks.
        seed: of the order.
        text: the running text; None: there is none.
        replay: share of the rows that it gets.
        rank: of this process; it takes rows [rank·B/W, (rank + 1)·B/W) of each batch.
        world_size: W, number of processes.

    Raises:
        ConfigError: a batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int,
        text: FingerprintedTokens | None = None,
        replay: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise ConfigError(
                f"A batch of {batch_size} rows cannot be divided evenly among {world_size} processes.",
                f"Choose a batch size that is a multiple of {world_size}.",
            )
        self._rows, self._text, self._seed = rows, text, seed
        self._text_rows = 0
        if text is not None and replay > 0:
            self._text_rows = min(batch_size - 1, max(1, round(replay * batch_size)))
        self._conversations = batch_size - self._text_rows
        share = batch_size // world_size
        self._mine = slice(rank * share, (rank + 1) * share)
        self._batches = 0
        self.batches_per_epoch = max(1, len(rows) // self._conversations)
        cut = f"{rows.tokens.fingerprint}:{text.fingerprint if text is not None else None}:{self._text_rows}"
        self._fingerprint = hashlib.blake2b(cut.encode(), digest_size=8).hexdigest()

    @property
    def epoch(self) -> float:
        """Passes over the conversations done, a fraction."""
        return self._batches / self.batches_per_epoch

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of this rank's rows of the next batch, each int64 of shape (B/W, T).

        Raises:
            DataError: the tokens on disk are damaged.
        """
        inputs, targets = self._rows.batch(self._chosen(self._batches))
        if self._text is not None and self._text_rows:
            read, expected = self._spells(self._batches, inputs.shape[1])
            inputs, targets = torch.cat([inputs, read]), torch.cat([targets, expected])
        self._batches += 1
        return inputs[self._mine], targets[self._mine]

    def _chosen(self, batch: int) -> np.ndarray:
        """The conversations of a batch: those of a pool in an order of their epoch's own, then sorted by length."""
        epoch, place = divmod(batch, self.batches_per_epoch)
        pool, within = divmod(place, POOL)
        batches = min(POOL, self.batches_per_epoch - pool * POOL)
        places = np.arange(batches * self._conversations) + pool * POOL * self._conversations
        chosen = permute(places % len(self._rows), len(self._rows), self._seed, epoch).astype(np.int64)
        chosen = chosen[np.argsort(self._rows.lengths[chosen], kind="stable")]
        which = int(permute(np.array([within]), batches, self._seed, batch - within)[0])
        return chosen[which * self._conversations : (which + 1) * self._conversations]

    def _spells(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of running text, each of shape (text rows, length); what is missing does not count."""
        assert self._text is not None
        shape = (self._text_rows, length)
        inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        taken = min(length, len(self._text) - 1)
        for row, number in enumerate(derived_numbers(self._seed, batch, "text", self._text_rows)):
            start = number % (len(self._text) - taken)
            ids = self._text.read(start, start + taken + 1)
            inputs[row, :taken], targets[row, :taken] = ids[:-1], ids[1:]
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def state(self) -> dict[str, Any]:
        """What continues the order from here; JSON values."""
        return {"batches": self._batches, "seed": self._seed, "fingerprint": self._fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            DataError: it was taken with another seed or other conversations.
        """
        for key, mine in (("fingerprint", self._fingerprint), ("seed", self._seed)):
            if state.get(key) != mine:
                raise DataError(
                    f"This run began with other conversations ({key} {state.get(key)!r}, now {mine!r}).",
                    "Go on with the data and settings that it began with, or begin a new run.",
                )
        self._batches = int(state["batches"])
