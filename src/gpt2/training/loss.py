"""Cross-entropy as a sum and a count, so that it can be divided once, over all micro-batches and processes."""

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target that is not to be learned."""


def cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the targets, in nats.

    Args:
        logits: shape (B, T, V), any floating format; the softmax is taken in fp32.
        targets: ids, shape (B, T); those equal to -100 do not count.

    Returns:
        The sum over counted targets, and their number; both scalars.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, (targets != IGNORED).sum()
