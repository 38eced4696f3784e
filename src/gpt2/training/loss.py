"""Cross-entropy as a sum and a count, so that it can be divided once, over all micro-batches and processes."""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gpt2.data.dataset import IGNORED

CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Logits (in fp32) that may lie in memory at once, by device; on others as on a CPU.

A GPU has the room, and compiling takes two seconds for each chunk of a micro-batch (on a core of a Xeon).
"""
ALIGNED = {"cuda": 64}
"""The columns of logits are made a multiple of it, where they are compiled: GPUs have their fastest products for that.

With 50,257 columns, one of the products on an H100 goes by a kernel for GPUs a generation older. The softmax takes all
columns, too, those beyond the vocabulary as -inf: rows that end in the middle of 16 bytes are read number by number, on
an H200 at 1.1 TB/s of its 4.3.
"""
EVEN = 128
"""Compiled chunks have a multiple of so many rows: what a GPU multiplies at once.

On a CPU the output matrix's gradient is made in two products, the first one of a multiple of so many columns of logits:
with all 50,257 at once oneDNN took a fifth longer in bf16 (an EPYC, 1,024 rows).
"""
CACHED_BYTES = {"cpu": 2**21}
"""Logits (in fp32) whose softmax is taken at once: what a processor's caches hold from one pass to the next."""


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


def _loss(logits: Tensor, labels: Tensor, beyond: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor]:
    """The summed loss of some rows, and where it is wished the gradient of their logits, in place of these.

    Args:
        logits: shape (N, V), or some columns more.
        labels: ids, shape (N,).
        beyond: which columns are no ids of the vocabulary.
        gradient: whether it is wished.
    """
    if torch.compiler.is_compiling():
        wide = logits.float()
        log_probabilities = (wide if beyond is None else wide.masked_fill(beyond, -torch.inf)).log_softmax(1)
        total = F.nll_loss(log_probabilities, labels, ignore_index=IGNORED, reduction="sum")
        return total, _gradient(log_probabilities, labels).to(logits.dtype) if gradient else logits
    size = CACHED_BYTES.get(logits.device.type, 4 * logits.numel()) // (4 * logits.shape[1]) or 1
    total = torch.zeros((), device=logits.device)
    for part, label in zip(logits.split(size), labels.split(size), strict=True):
        log_probabilities = part.float().log_softmax(1)
        total += F.nll_loss(log_probabilities, label, ignore_index=IGNORED, reduction="sum")
        if gradient:
            part.copy_(_gradient(log_probabilities, label))
    return total, logits


def _gradient(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of the loss, with respect to logits, in fp32: softmax minus one-hot, 0 where nothing counts. Shape (N, V)."""
    counted = labels != IGNORED
    targets = labels.where(counted, 0)
    if torch.compiler.is_compiling():
        # Compiled, this is one pass from the logits; what is changed in place is written and read again.
        ids = torch.arange(log_probabilities.shape[1], device=labels.device)
        return (log_probabilities.exp() - (ids == targets[:, None]).float()) * counted[:, None]
    gradient = log_probabilities.exp_()
    gradient[torch.arange(len(labels), device=labels.device), targets] -= 1
    return gradient.mul_(counted[:, None])


def _matrix_gradient(gradient: Tensor, rows: Tensor, matrix: Tensor) -> Tensor:
    """Of the loss, with respect to the output matrix, from that of logits and what they were made from."""
    if torch.compiler.is_compiling() or rows.device.type != "cpu" or rows.dtype != torch.bfloat16:
        return (gradient.T @ rows)[: len(matrix)].to(matrix.dtype)
    product, even = torch.empty_like(matrix), len(matrix) // EVEN * EVEN
    for columns in (slice(even), slice(even, None)):
        product[columns] = gradient[:, columns].T @ rows
    return product


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients of some rows at a time: the gradient of logits is softmax minus one-hot, known at once.

    The matrix's gradient is summed and handed on in its own format. (Through autograd, in bf16 beside fp32 weights, its
    conversions and copies took a fifth of a step of GPT-2 124M on a CPU.)
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, matrix: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        total = torch.zeros((), device=rows.device)
        size = max(1, CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cpu"]) // (4 * len(matrix)))
        rows_gradient = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        matrix_gradient: Tensor | None = None
        weights, beyond = matrix.to(dtype), None
        if torch.compiler.is_compiling():
            # In autocast a chunk's logits and their gradient are 16 bits each then: twice as many have room. And
            # chunks are alike where they can be, as each other size is compiled for itself.
            parts = -(-len(rows) // (2 * size))
            size = -(-len(rows) // (parts * EVEN)) * EVEN
            columns = -len(matrix) % ALIGNED.get(rows.device.type, 1)
            if columns:
                weights = F.pad(weights, (0, 0, 0, columns))
                beyond = torch.arange(len(weights), device=rows.device) >= len(matrix)
        with torch.autocast(rows.device.type, enabled=False):
            for start in range(0, len(rows), size):
                part, label = rows[start : start + size].to(dtype), labels[start : start + size]
                loss, gradient = _loss(part @ weights.T, label, beyond, any(ctx.needs_input_grad))
                # Not in place: compiled by torch 2.11, a sum that was returned changed gets a gradient of 0.
                total = total + loss
                if rows_gradient is not None:
                    rows_gradient[start : start + size] = gradient @ weights
                if ctx.needs_input_grad[1]:
                    product = _matrix_gradient(gradient, part, matrix)
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
