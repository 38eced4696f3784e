"""Keys and values of the tokens already seen, so that a new token costs one column and not the whole text again."""

import torch
from torch import Tensor


class KVCache:
    """Preallocated keys and values of every layer; `length` tokens are filled and the caller advances it.

    Args:
        n_layer: layers of the model.
        n_head: attention heads of a layer, H.
        head_size: numbers per head, D.
        capacity: most tokens it can hold, S.
        batch: sequences side by side, B; all have the same length.
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
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, B, H, S, D)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new keys and values, shape (B, H, T, D), behind the filled ones; return all up to the new end.

        `length` does not move: every layer writes to the same place, then the caller advances once.
        """
        end = self.length + keys.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache of {self.capacity}"
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as filled, after a forward pass over them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything behind the first `length` tokens."""
        assert 0 <= length <= self.length, f"cannot truncate {self.length} tokens to {length}"
        self.length = length
