"""LoRA (Hu et al. 2021): a model's matrices stay as they are; beside each one in the blocks a thin product is learned.

Gradients and the optimizer's means then take a hundredth of the memory that they take for all weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.gpt2 import GPT2


class LowRankLinear(nn.Module):
    """A matrix that stays, plus `up · down`, which is learned and at first nothing.

    Args:
        plain: the matrix and its bias; both are frozen.
        rank: of the product, from 1.
        scale: the product's factor.
        generator: of the first numbers.
    """

    def __init__(self, plain: nn.Linear, rank: int, scale: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.plain, self.scale = plain.requires_grad_(False), scale
        self.down = nn.Parameter(plain.weight.new_empty(rank, plain.in_features))
        self.up = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs, shape (…, inputs), to outputs, shape (…, outputs)."""
        return self.plain(x) + self.scale * F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """The same as one matrix."""
        linear = nn.Linear(self.plain.in_features, self.plain.out_features, device="meta")
        linear.weight = nn.Parameter(self.plain.weight + self.scale * self.up @ self.down)
        linear.bias = self.plain.bias
        return linear


class LastRowsEmbedding(nn.Module):
    """An embedding of which only the last rows are learned.

    Args:
        plain: all of it.
        first: the first row to learn, from 1.
    """

    def __init__(self, plain: nn.Embedding, first: int) -> None:
        super().__init__()
        self.first = first
        self.fixed = nn.Parameter(plain.weight[:first].detach().clone(), requires_grad=False)
        self.rows = nn.Parameter(plain.weight[first:].detach().clone())

    @property
    def weight(self) -> Tensor:
        """All rows, shape (V, C); made anew at each call."""
        return torch.cat([self.fixed, self.rows])

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids, shape (…), to rows, shape (…, C)."""
        fixed = F.embedding(tokens.clamp(max=self.first - 1), self.fixed)
        learned = F.embedding((tokens - self.first).clamp(min=0), self.rows)
        return torch.where((tokens < self.first)[..., None], fixed, learned)

    def merged(self) -> nn.Embedding:
        """The same as one matrix."""
        return nn.Embedding.from_pretrained(self.weight, freeze=False)


def with_low_rank(model: GPT2, rank: int, alpha: float, first: int, generator: torch.Generator | None = None) -> GPT2:
    """The model with a learned product beside each matrix of its blocks, and the last rows of its embedding learned.

    The model given is used up.

    Args:
        model: any.
        rank: of the products.
        alpha: their factor, times the rank.
        first: the first row of the embedding that is learned: ids that the model has not been trained with.
        generator: of the first numbers.
    """
    model.requires_grad_(False)
    for name, module in list(model.h.named_modules()):
        if isinstance(module, nn.Linear):
            model.h.set_submodule(name, LowRankLinear(module, rank, alpha / rank, generator))
    model.set_submodule("wte", LastRowsEmbedding(model.wte, first))
    return model


@torch.no_grad()
def merged(model: GPT2) -> GPT2:
    """The plain model that computes the same: the given one, where it is plain; what stayed the same is shared."""
    parts = [(n, m) for n, m in model.named_modules() if isinstance(m, LowRankLinear | LastRowsEmbedding)]
    if not parts:
        return model
    with torch.device("meta"):
        plain = GPT2(model.config)
    for name, module in parts:
        plain.set_submodule(name, module.merged())
    inside = tuple(f"{name}." for name, _ in parts)
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith(inside)}
    plain.load_state_dict(kept, strict=False, assign=True)
    return plain.train(model.training)
