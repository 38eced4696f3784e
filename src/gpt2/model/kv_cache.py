"""Keys and values of the tokens already seen, so that a new token costs one column and not the whole text again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gpt2.model import huge_pages


class KVCache:
    """Preallocated keys and values of every layer, a row for each text; row b is filled up to `lengths[b]`.

    The memory of all rows is taken once, here: zeros are written to it, so that no system can promise it only.

    Args:
        n_layer: layers of the model, L.
        n_head: attention heads of a layer, H.
        head_size: numbers per head, D.
        capacity: most tokens of a row, S.
        batch: rows, B; each has a length of its own.
        dtype: number format of what is stored.
        device: where it is stored.
    """

    def __init__(
        self,
        n_layer: int,
        n_head: int,
        head_size: int,
        capacity: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_layer, batch, n_head, capacity, head_size)
        self.keys, self.values = (_zeros(shape, dtype, torch.device(device)) for _ in range(2))  # (L, B, H, S, D)
        self.capacity = capacity
        self.lengths = [0] * batch

    def advance(self, tokens: int, rows: Sequence[int] | None = None) -> None:
        """Count `tokens` more as filled in these rows (else in all), after a forward pass over them."""
        for row in range(len(self.lengths)) if rows is None else rows:
            self.lengths[row] += tokens

    def truncate(self, row: int, length: int) -> None:
        """Forget everything behind the first `length` tokens of a row."""
        assert 0 <= length <= self.lengths[row], f"cannot truncate {self.lengths[row]} tokens to {length}"
        self.lengths[row] = length

    def wipe(self, row: int) -> None:
        """Forget a row with numbers that are none: behind its end they are masked, but 0 × NaN is NaN."""
        self.keys[:, row] = 0.0
        self.values[:, row] = 0.0
        self.lengths[row] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        """Make the target row begin as the first `length` tokens of the source row, and end there."""
        assert 0 <= length <= self.lengths[source], f"cannot copy {length} of {self.lengths[source]} tokens"
        if source != target:
            for part in (self.keys, self.values):
                part[:, target, :, :length] = part[:, source, :, :length]
        self.lengths[target] = length


class Past:
    """What a forward pass over T new tokens a row finds in a cache, and where it writes.

    Every layer writes to the same place; the caller advances the cache once, afterwards.

    Args:
        cache: keys and values of the tokens before the new ones.
        rows: the rows of the cache that the batch is made of, in its order; else all.
        tokens: new tokens of each row, T.

    Attributes:
        end: tokens attended to, S: those of the longest row, the new ones included.
        positions: of the new tokens, shape (B, T).
        mask: which tokens each new one sees, shape (B, 1, T, S), the same for each head; None: all, or those up to
            itself.
    """

    def __init__(self, cache: KVCache, rows: Sequence[int] | None, tokens: int) -> None:
        rows = range(len(cache.lengths)) if rows is None else rows
        lengths = [cache.lengths[row] for row in rows]
        first, device = rows[0], cache.keys.device
        self.end = max(lengths) + tokens
        assert self.end <= cache.capacity, f"{self.end} tokens in a cache of {cache.capacity}"
        self.cache = cache
        self.index = torch.tensor(list(rows), device=device)  # (B,)
        # Rows side by side are read where they lie; others have to be gathered.
        self.span = slice(first, first + len(rows)) if list(rows) == list(range(first, first + len(rows))) else None
        starts = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
        self.positions = starts + torch.arange(tokens, device=device)  # (B, T)
        # A query sees its past and itself. Where no row has a past that is SDPA's own causal mask; where all have
        # the same and one new token, all is seen.
        self.mask: Tensor | None = None
        if max(lengths) > 0 and (tokens > 1 or min(lengths) < max(lengths)):
            self.mask = self.seen()

    def seen(self) -> Tensor:
        """A query sees its past and itself: shape (B, 1, T, S)."""
        places = torch.arange(self.end, device=self.positions.device)  # (S,)
        return (places <= self.positions[:, :, None])[:, None]

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values, shape (B, H, T, D), behind the filled ones; return all up to the longest row."""
        return self._store(self.cache.keys[layer], keys), self._store(self.cache.values[layer], values)

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        stored[self.index[:, None], :, self.positions] = new.transpose(1, 2).to(stored.dtype)  # (B, T, H, D)
        return stored[self.index if self.span is None else self.span, :, : self.end]  # (B, H, S, D)


class PastOfAll(Past):
    """The same for one new token in every row, where it lies in tensors which rows have one, and behind how many.

    Nothing here depends on the numbers in these tensors but numbers in other tensors: a GPU can repeat the pass, when
    they have changed, without being told anew what to do. Rows that have no new token compute something that nobody
    wants, and keep what they have.

    Args:
        cache: keys and values of the tokens before the new ones, B rows.
        lengths: tokens of each row, shape (B,); of those that have a new one less than `end`.
        reading: whether each row has a new one, boolean, shape (B,).
        end: tokens attended to, S; those behind a row's own are masked.
    """

    def __init__(self, cache: KVCache, lengths: Tensor, reading: Tensor, end: int) -> None:
        self.cache, self.reading, self.end = cache, reading, end
        self.index = torch.arange(len(lengths), device=lengths.device)  # (B,)
        self.positions = lengths.clamp(max=end - 1)[:, None]  # (B, 1)
        self.mask = self.seen()

    def _store(self, stored: Tensor, new: Tensor) -> Tensor:
        place = self.positions[:, 0]
        kept = stored[self.index, :, place]  # (B, H, D)
        # Not written and left: what lies behind a row's end is hidden by a factor of 0, and 0 × NaN is NaN.
        stored[self.index, :, place] = torch.where(self.reading[:, None, None], new[:, :, 0].to(stored.dtype), kept)
        return stored[:, :, : self.end]  # (B, H, S, D)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPUs in huge pages: with 16 texts of 124M a step takes 1.03 (fp32) to 1.05 times as long without (int8)."""
    if device.type == "cpu":
        return huge_pages.empty(shape, dtype).zero_()
    return torch.zeros(shape, dtype=dtype, device=device)
