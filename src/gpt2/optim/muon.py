"""Muon: momentum, orthogonalised (Jordan et al. 2024, "An optimizer for hidden layers in neural networks")."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gpt2.distributed import like, whole
from gpt2.optim.optimizer import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that drives singular values towards 1; chosen by Jordan et al. for the steepest slope at zero."""


def orthogonalized(matrices: Tensor, iterations: int, precision: torch.dtype = torch.float32) -> Tensor:
    """The nearest (semi-)orthogonal matrices, about: singular values between 0.7 and 1.2, singular vectors kept.

    Newton-Schulz: X ← a·X + b·(XXᵀ)X + c·(XXᵀ)²X, on matrices scaled to a Frobenius norm of 1.

    Args:
        matrices: shape (N, R, C), each treated alone.
        iterations: five suffice from a condition number of about 1,000.
        precision: of the products.

    Returns:
        Shape (N, R, C), in `precision`.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(precision)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:  # the product with the transpose is smaller on the short side
        x = x.mT
    for _ in range(iterations):
        squared = x @ x.mT  # (N, R, R)
        polynomial = torch.baddbmm(squared, squared, squared, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


MOMENTUM_AT_FIRST = 0.85


class Muon(Optimizer):
    """Muon for the matrices inside the blocks; embeddings, norms and biases belong to AdamW.

    Matrices of one shape are orthogonalised together, as a batch. The fused projection to queries, keys and values
    counts as its three parts: they are different maps, and one orthogonal matrix over all three serves none of them.

    Args:
        groups: of 2-D weights (out, in); a group's `parts` says how many equal maps its rows hold.
        lr: step size, in spectral norm: a square matrix moves by this much in every direction.
        weight_decay: decoupled, as in AdamW.
        momentum: decay of the gradient's running mean, with Nesterov's look-ahead.
        warmup: steps in which the momentum rises from 0.85, or from its own value where that is lower: the first
            gradients are far from the later ones, and a long memory would drag them along.
        iterations: of Newton and Schulz.
        precision: of the orthogonalisation; the rest is in the format of the weights.
    """

    copies = 1

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        warmup: int = 300,
        iterations: int = 5,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.iterations = iterations
        self.precision = precision
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "warmup": warmup, "parts": 1}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self) -> None:
        """One update of all matrices that have a gradient.

        Where processes hold shares of the weights, each gathers the directions and computes all updates: it is the
        same arithmetic everywhere, so that any number of processes takes the same step.
        """
        parts: dict[torch.Size, list[Tensor]] = defaultdict(list)
        moving = [
            (weight, group) for group in self.param_groups for weight in group["params"] if weight.grad is not None
        ]
        for weight, group in moving:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())  # as AdamW counts: on the CPU, where nobody waits for it
                state["momentum"] = torch.zeros_like(weight)
            warm = min(1.0, state["step"].item() / group["warmup"]) if group["warmup"] else 1.0
            low = min(MOMENTUM_AT_FIRST, group["momentum"])
            decay = low + warm * (group["momentum"] - low)
            state["step"] += 1
            state["momentum"].lerp_(weight.grad, 1 - decay)
            ahead = whole(weight.grad.lerp(state["momentum"], decay))
            for part in ahead.chunk(group["parts"]):
                parts[part.shape].append(part)
        ready = {
            shape: iter(orthogonalized(torch.stack(alike), self.iterations, self.precision))
            for shape, alike in parts.items()
        }
        for weight, group in moving:
            rows, columns = weight.shape[0] // group["parts"], weight.shape[1]
            shape = torch.Size((rows, columns))
            update = torch.cat([next(ready[shape]) for _ in range(group["parts"])]).to(weight.dtype)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(like(update, weight), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
