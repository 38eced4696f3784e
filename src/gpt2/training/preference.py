"""DPO (Rafailov et al. 2023, "Direct Preference Optimization", equation 7): of two answers, one becomes likelier."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.data.dataset import IGNORED
from gpt2.training.loss import HiddenStates


class PreferenceLoss(nn.Module):
    """The objective of preference tuning: -log sigmoid of how much more than the reference the model prefers.

    Args:
        model: learns; gives hidden states and an output matrix.
        reference: the model before it learned, without dropout. It stays as it is, and so do its gradients: none.
        beta: how dear it is to leave the reference; the smaller, the further the model goes.
    """

    def __init__(self, model: nn.Module, reference: nn.Module, beta: float) -> None:
        super().__init__()
        self.model, self.reference, self.beta = model, reference.requires_grad_(False).eval(), beta

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over pairs, and their number; both scalars.

        Args:
            inputs: ids, shape (B, 2, T), the preferred one first.
            targets: ids, shape (B, 2, T); those equal to -100 do not count. A pair without any is none.
        """
        counted = (targets != IGNORED).flatten(1).any(1)
        losses = -F.logsigmoid(self.margins(inputs, targets))
        return (losses * counted).sum(), counted.sum()

    def margins(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """By how much the model prefers the first of each pair more than the reference does, times beta: shape (B,)."""
        rows, labels = inputs.flatten(0, 1), targets.flatten(0, 1)  # (2·B, T)
        with torch.no_grad():
            before = log_probabilities(self.reference, rows, labels)
        better, worse = (log_probabilities(self.model, rows, labels) - before).view(-1, 2).unbind(1)
        return self.beta * (better - worse)

    def train(self, mode: bool = True) -> "PreferenceLoss":
        """Switch the model; the reference stays in evaluation mode."""
        super().train(mode)
        self.reference.eval()
        return self


def log_probabilities(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The logarithm of each row's probability: the sum over its counted targets, shape (B,), fp32.

    Args:
        model: gives hidden states and an output matrix.
        inputs: ids, shape (B, T).
        targets: ids, shape (B, T); those equal to -100 do not count.
    """
    whole = cast(HiddenStates, model)
    counted = targets != IGNORED
    hidden = whole.hidden_states(inputs)[counted]  # (N, C): logits of nothing else
    losses = F.cross_entropy(F.linear(hidden, whole.output_matrix).float(), targets[counted], reduction="none")
    rows = counted.nonzero()[:, 0]
    return torch.zeros(len(inputs), device=inputs.device).index_add(0, rows, -losses)
