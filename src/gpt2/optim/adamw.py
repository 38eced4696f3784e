"""AdamW (Loshchilov & Hutter 2019), with weight decay only where it belongs."""

from collections.abc import Iterable

import torch
from torch import nn

from gpt2.config.schema import OptimSettings


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight is decayed: matrices are; biases, norms (vectors) and the table of positions are not."""
    return parameter.dim() >= 2 and not name.endswith("wpe.weight")


def build_adamw(named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings) -> torch.optim.AdamW:
    """One fused AdamW over two groups, with and without decay."""
    assert settings.lr is not None and settings.beta2 is not None, "resolve the settings first"
    named = list(named_parameters)
    groups = [
        {"params": [p for n, p in named if decays(n, p) is decay], "weight_decay": settings.weight_decay * decay}
        for decay in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
