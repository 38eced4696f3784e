"""Pairs of conversations that differ in their answer, of which the first is preferred."""

import numpy as np
from torch import Tensor

from gpt2.data.conversations import ConversationRows, ConversationTokens
from gpt2.data.dataset import IGNORED
from gpt2.tokenizer.roles import Roles


class PreferenceRows:
    """The pairs of a part, each a row of two; methods and attributes are those of `ConversationRows`.

    Args:
        tokens: ids of conversations; those at 2·i and 2·i + 1 are a pair, the better one first.
        roles: the marks in them.
    """

    def __init__(self, tokens: ConversationTokens, roles: Roles) -> None:
        self.tokens, self.roles = tokens, roles
        self.answers = ConversationRows(tokens, roles)
        """All conversations, one by one."""
        assert len(self.answers) % 2 == 0, "an answer without its other"
        self.lengths = self.answers.lengths.reshape(-1, 2).max(axis=1)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.lengths)

    def ids(self, index: int) -> np.ndarray:
        """The ids of a pair's better conversation, shape (n,), int64."""
        return self.answers.ids(2 * index)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some pairs, each int64 of shape (B, 2, longest of them)."""
        both = np.stack([2 * indices, 2 * indices + 1], axis=1).reshape(-1)
        inputs, targets = self.answers.batch(both)
        shape = (len(indices), 2, inputs.shape[1])
        return inputs.view(shape), targets.view(shape)

    def counted(self, targets: Tensor) -> int:
        """How many terms of the loss targets give: one a pair that has any."""
        return int((targets != IGNORED).flatten(1).any(1).sum())
