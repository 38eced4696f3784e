"""What every optimizer here is: groups of weights with their settings, and a few tensors kept for each weight.

PyTorch's own base class imports its compiler when it is made (1.1 s of a run's start on a laptop); this one has no use
for it.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

MEAN = "mean"
"""What is kept for a weight under this name is its mean over steps; or, where the two are exchanged, itself."""


class Optimizer(ABC):
    """Moves weights along their gradients.

    Args:
        groups: each has `params`, and settings of its own.
        defaults: settings of the groups that do not have their own.
    """

    counts_beside_weights = False
    """Whether the counter of steps lies on the weights' device; else on the CPU, where nobody waits for it."""

    copies = 2
    """Tensors of a weight's size that are kept for it."""

    def __init__(self, groups: Iterable[Mapping[str, Any]], defaults: Mapping[str, Any]) -> None:
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        """Weight → what is kept for it, by name."""

    @abstractmethod
    def step(self) -> None:
        """One update of all weights that have a gradient."""

    @torch.no_grad()
    def take_into_means(self, share: float) -> None:
        """Move each weight's mean by this share of the way to where the weight stands; a new one all the way."""
        old = [(state[MEAN], weight) for weight, state in self.state.items() if MEAN in state]
        for weight, state in self.state.items():
            if MEAN not in state:
                state[MEAN] = weight.detach().clone()
        if old:
            means, weights = zip(*old, strict=True)
            torch._foreach_lerp_(means, weights, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def exchange_means(self) -> None:
        """Put the means where the weights are, and those in their place; once more undoes it."""
        for weight, state in self.state.items():
            if MEAN in state:
                kept = weight.detach().clone()
                weight.copy_(state[MEAN])
                state[MEAN].copy_(kept)

    def forget_means(self) -> None:
        """Keep none any more."""
        for state in self.state.values():
            state.pop(MEAN, None)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad = None
