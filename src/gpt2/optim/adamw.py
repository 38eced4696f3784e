"""AdamW (Loshchilov & Hutter 2019), with weight decay only where it belongs."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.config.schema import OptimSettings
from gpt2.optim.optimizer import Optimizer


class AdamW(Optimizer):
    """Adam with decoupled weight decay (algorithm 2), all weights of a group in one call of PyTorch's fused kernel.

    Args:
        groups: of weights.
        lr: step size.
        betas: decay of the gradient's running mean and of its running square.
        eps: added to the root of the running square.
        weight_decay: share of the step size by which a weight shrinks.
    """

    counts_beside_weights = True  # where the fused kernel reads it

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """One update of all weights that have a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            states = [self._state(weight) for weight in weights]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
                weights,
                [weight.grad for weight in weights],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _state(self, weight: Tensor) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a weight is decayed: matrices are; biases, norms (vectors) and the table of positions are not."""
    return parameter.dim() >= 2 and not name.endswith("wpe.weight")


def build_adamw(named_parameters: Iterable[tuple[str, nn.Parameter]], settings: OptimSettings) -> AdamW:
    """One AdamW over two groups, with and without decay."""
    assert settings.lr is not None and settings.beta2 is not None, "resolve the settings first"
    assert settings.weight_decay is not None
    named = list(named_parameters)
    groups = [
        {"params": [p for n, p in named if decays(n, p) is decay], "weight_decay": settings.weight_decay * decay}
        for decay in (True, False)
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
