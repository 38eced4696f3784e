"""Running the model over pieces of several texts, each with its own past in a row of the cache."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.model.gpt2 import GPT2
from gpt2.model.kv_cache import Past
from gpt2.model.precision import products_of


class Piece(NamedTuple):
    """Tokens to read behind what a row of the cache holds."""

    row: int
    ids: Sequence[int]
    """At least one."""
    answers: int
    """Of how many of the last ids the logits of what follows are wanted."""


class Reader:
    """The model as a PyTorch module, and the cache that it reads and writes.

    The model may be in the midst of training: each reading runs in evaluation mode without gradients, and the model
    is as before whenever the caller has the word.

    Args:
        model: on any device, in any precision.
        rows: texts side by side.
    """

    drafts = False
    """Whether a few tokens more cost little, and change no number of the others, not even in the last bit."""

    def __init__(self, model: GPT2, rows: int) -> None:
        self.model = model
        self.cache = model.new_cache(rows)

    def read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """Read pieces of different rows; the cache advances.

        Returns:
            The logits that are wanted, in the order of pieces and ids: shape (wanted, V). The next reading may
            write over them.
        """
        # Both contexts end with this reading: whoever held them while the caller runs would leave a training loop
        # without dropout and without gradients.
        with _evaluating(self.model), torch.inference_mode(), products_of(self.model):
            return self._read(pieces)

    def _read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        # Single tokens are one batch. A longer piece fills the machine by itself.
        answers: dict[int, Tensor] = {}
        single = [piece for piece in pieces if len(piece.ids) == 1]
        for batch in [single, *([piece] for piece in pieces if len(piece.ids) > 1)]:
            if batch:
                answers |= self._read_batch(batch)
        found = [answers[piece.row] for piece in pieces if piece.answers]
        return (torch.cat(found) if found else torch.empty(0)).to("cpu", torch.float32).numpy()

    def _read_batch(self, batch: Sequence[Piece]) -> dict[int, Tensor]:
        """Read pieces of one length at once: row → logits, shape (answers, V), of those that want them."""
        rows = [piece.row for piece in batch]
        tokens = torch.tensor([list(piece.ids) for piece in batch], device=self.model.wpe.weight.device)  # (B, T)
        hidden = self.model.hidden_states(tokens, Past(self.cache, rows, tokens.shape[1]))  # (B, T, C)
        self.cache.advance(tokens.shape[1], rows)
        wanted = [(place, piece) for place, piece in enumerate(batch) if piece.answers]
        if not wanted:
            return {}
        logits = self.model.logits(torch.cat([hidden[place, -piece.answers :] for place, piece in wanted]))
        parts = logits.split([piece.answers for _, piece in wanted])
        return dict(zip((piece.row for _, piece in wanted), parts, strict=True))


@contextlib.contextmanager
def _evaluating(model: GPT2) -> Iterator[None]:
    """Run the model in evaluation mode (no dropout), then as it was."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
