"""The mean loss over a part of the data, each token counted once."""

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor, int]],
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> float:
    """Mean cross-entropy in nats a token, without dropout.

    Args:
        model: switched to evaluation for the time, then back.
        forward: what computes logits (the model or its compiled form).
        batches: inputs and targets, each of shape (B, T), and how many targets count.
        loss: logits and targets → (sum, count).
        autocast: number format of the matrix products.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total, counted = 0.0, 0
    try:
        for inputs, targets, count in batches:
            with autocast():
                loss_sum, _ = loss(forward(inputs.to(device)), targets.to(device))
            total += loss_sum.item()  # added in double precision
            counted += count
    finally:
        model.train(training)
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
