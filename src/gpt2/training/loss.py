"""Cross-entropy as a sum and a count, so that it can be divided once, over all micro-batches and processes."""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.data.dataset import IGNORED

CHUNK_BYTES = 2**26
"""Logits (in fp32) that may lie in memory at once."""


class HiddenStates(Protocol):
    """A model whose last step is a matrix from hidden states to logits."""

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """Ids of shape (B, T) → what the output matrix reads, shape (B, T, C)."""
        ...

    @property
    def output_matrix(self) -> Tensor:
        """Hidden states to logits: shape (V, C)."""
        ...


class NextTokenLoss(nn.Module):
    """The objective of language modelling: negative log-likelihood of each target, in nats.

    Args:
        model: gives hidden states and an output matrix.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over counted targets, and their number; both scalars.

        Args:
            inputs: ids, shape (B, T).
            targets: ids, shape (B, T); those equal to -100 do not count.
        """
        model = cast(HiddenStates, self.model)
        return linear_cross_entropy(model.hidden_states(inputs), model.output_matrix, targets)


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the logits `hidden @ matrix.T`; where these would be large, never all of them at once.

    Args:
        hidden: shape (B, T, C), any floating format; the softmax is taken in fp32.
        matrix: shape (V, C).
        targets: ids, shape (B, T); those equal to -100 do not count.

    Returns:
        The sum over counted targets, and their number; both scalars.
    """
    rows, labels = hidden.flatten(0, 1), targets.flatten()
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, matrix = rows.to(dtype), matrix.to(dtype)
    size = max(1, CHUNK_BYTES // (4 * len(matrix)))
    if len(rows) <= size:
        total = F.cross_entropy((rows @ matrix.T).float(), labels, ignore_index=IGNORED, reduction="sum")
    else:
        total = cast(Tensor, _ChunkedCrossEntropy.apply(rows, matrix, labels, size))
    return total, (labels != IGNORED).sum()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Loss and gradients of a few rows at a time: the gradient of logits is softmax minus one-hot, known at once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, labels: Tensor, size: int) -> Tensor:
        total = torch.zeros((), device=rows.device)
        rows_gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        # Summed over the chunks, hence in fp32.
        matrix_gradient = torch.zeros_like(matrix, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), size):
                part, label = rows[start : start + size], labels[start : start + size]
                log_probabilities = (part @ matrix.T).float().log_softmax(1)  # (N, V)
                total += F.nll_loss(log_probabilities, label, ignore_index=IGNORED, reduction="sum")
                if rows_gradient is None and matrix_gradient is None:
                    continue
                gradient = log_probabilities.exp_()
                counted = label != IGNORED
                gradient[torch.arange(len(label), device=label.device), label.where(counted, 0)] -= 1
                gradient = gradient.mul_(counted[:, None]).to(matrix.dtype)
                if rows_gradient is not None:
                    rows_gradient[start : start + size] = gradient @ matrix
                if matrix_gradient is not None:
                    matrix_gradient += gradient.T @ part
        ctx.save_for_backward(rows_gradient, matrix_gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        rows_gradient, matrix_gradient = ctx.saved_tensors
        scale = outer[0]
        return (
            None if rows_gradient is None else rows_gradient * scale,
            None if matrix_gradient is None else matrix_gradient * scale,
            None,
            None,
        )
