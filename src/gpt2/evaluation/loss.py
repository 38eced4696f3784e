"""The mean loss over a part of the data, each token counted once."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def mean_loss(
    objective: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, int]],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    total_of: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> float:
    """Mean cross-entropy in nats a token, without dropout.

    Args:
        objective: inputs and targets → (sum, count); switched to evaluation for the time, then back.
        batches: inputs and targets, each of shape (B, T), and how many targets count.
        autocast: number format of the matrix products.
        total_of: this process's sums → those of all processes.
    """
    training, device = objective.training, next(objective.parameters()).device
    objective.eval()
    losses: list[Tensor] = []  # read at the end: a GPU would wait for each
    total, counted = 0.0, 0
    try:
        for inputs, targets, count in batches:
            with autocast():
                loss_sum, _ = objective(inputs.to(device), targets.to(device))
            losses.append(loss_sum)
            counted += count
    finally:
        objective.train(training)
    for loss_sum in torch.stack(losses).tolist():
        total += loss_sum  # in double precision
    wide = torch.float32 if device.type == "mps" else torch.float64
    total, counted = total_of(torch.tensor([total, counted], dtype=wide, device=device)).tolist()
    assert counted, "nothing to evaluate"
    return total / counted


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Loss in nats a token → bits for each byte of the text: comparable between tokenizers.

    Args:
        loss: mean cross-entropy, nats a token.
        tokens: tokens of the text.
        text_bytes: UTF-8 bytes of the same text.
    """
    return loss / math.log(2) * tokens / max(text_bytes, 1)
