"""Cross-entropy as a sum and a count, so that it can be divided once, over all micro-batches and processes."""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2.data.dataset import IGNORED

CHUNK_BYTES = 2**28
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
    if not torch.is_grad_enabled():  # `needs_input_grad` asks the tensors alone, and a weight always says yes
        rows, matrix = rows.detach(), matrix.detach()
    dtype = matrix.dtype
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
    total = cast(Tensor, _LinearCrossEntropy.apply(rows, matrix, labels, dtype))
    return total, (labels != IGNORED).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of some rows at a time: the gradient of logits is softmax minus one-hot, known at once.

    The matrix's gradient is summed and handed on in its own format. (Through autograd, in bf16 beside fp32 weights, its
    conversions and copies took a fifth of a step of GPT-2 124M on a CPU.)
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros((), device=rows.device)
        size = max(1, CHUNK_BYTES // (4 * len(matrix)))
        rows_gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        matrix_gradient: Tensor | None = None
        weights = matrix.to(dtype)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), size):
                part, label = rows[start : start + size].to(dtype), labels[start : start + size]
                log_probabilities = (part @ weights.T).float().log_softmax(1)  # (N, V)
                # Not in place: compiled by torch 2.11, a sum that was returned changed gets a gradient of 0.
                total = total + F.nll_loss(log_probabilities, label, ignore_index=IGNORED, reduction="sum")
                if rows_gradient is None and not ctx.needs_input_grad[1]:
                    continue
                gradient = log_probabilities.exp_()
                counted = label != IGNORED
                gradient[torch.arange(len(label), device=label.device), label.where(counted, 0)] -= 1
                gradient = gradient.mul_(counted[:, None]).to(dtype)
                if rows_gradient is not None:
                    rows_gradient[start : start + size] = gradient @ weights
                if ctx.needs_input_grad[1]:
                    product = (gradient.T @ part).to(matrix.dtype)
                    matrix_gradient = product if matrix_gradient is None else matrix_gradient.add_(product)
        ctx.save_for_backward(rows_gradient, matrix_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *outer: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows_gradient, matrix_gradient = ctx.saved_tensors
        scale = outer[0]
        return (
            None if rows_gradient is None else rows_gradient * scale,
            None if matrix_gradient is None else matrix_gradient.mul_(scale),
            None,
            None,
        )
