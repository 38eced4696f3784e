"""Muon: orthogonal updates, the same as PyTorch's own, and three maps for three in the fused projection."""

import pytest
import torch
from torch import nn

from gpt2.config.schema import OptimSettings
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.optim.build import build_optimizers
from gpt2.optim.muon import COEFFICIENTS, Muon, orthogonalized
from gpt2.optim.optimizer import Optimizer


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 8, 32), (2, 32, 8)])
def test_singular_values_come_close_to_one_and_directions_stay(shape: tuple[int, int, int]) -> None:
    matrices = random(*shape)
    out = orthogonalized(matrices, iterations=5)
    values = torch.linalg.svdvals(out)
    assert values.median() > 0.65  # the smallest of a square matrix may begin below the slope's reach
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = (out * (u @ v)).sum((1, 2)) / (out.norm(dim=(1, 2)) * (u @ v).norm(dim=(1, 2)))
    assert cosine.min() > 0.97
    assert torch.allclose(orthogonalized(matrices[:1], 5), out[:1], atol=1e-5)  # each alone


def quintic(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz as it is written, in double precision: five times a·X + b·(XXᵀ)X + c·(XXᵀ)²X."""
    a, b, c = COEFFICIENTS
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.mT
        x = a * x + b * square @ x + c * square @ square @ x
    return x.float()


@pytest.mark.parametrize("shape", [(24, 24), (8, 32), (32, 8), (9, 17)])
@pytest.mark.parametrize("decades", [0, 2, 5, None])
def test_they_are_those_of_the_iterations_as_they_are_written(shape: tuple[int, int], decades: int | None) -> None:
    """Also where singular values are tiny, or all but one are zero."""
    u, _, v = torch.linalg.svd(random(*shape), full_matrices=False)
    values = torch.zeros(min(shape)) if decades is None else torch.logspace(0, -decades, min(shape))
    values[0] = 1.0
    matrix = u * values @ v
    assert torch.allclose(orthogonalized(matrix[None], 5)[0], quintic(matrix), atol=1e-3)


def step(
    optimizer: Optimizer | torch.optim.Optimizer, weight: nn.Parameter, gradients: list[torch.Tensor]
) -> torch.Tensor:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_a_step_is_that_of_pytorch(shape: tuple[int, int]) -> None:
    gradients = [random(*shape), random(*shape).flip(0), random(*shape).flip(1)]
    ours, theirs = nn.Parameter(random(*shape)), nn.Parameter(random(*shape))
    a = Muon([{"params": [ours]}], lr=0.05, weight_decay=0.1, warmup=0, precision=torch.bfloat16)
    b = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    assert torch.allclose(step(a, ours, gradients), step(b, theirs, gradients), atol=3e-3)


def test_queries_keys_and_values_are_three_maps() -> None:
    gradient = random(24, 8)
    fused = nn.Parameter(torch.zeros(24, 8))
    step(Muon([{"params": [fused], "parts": 3}], lr=0.1), fused, [gradient])
    for part, alone in zip(fused.detach().chunk(3), gradient.chunk(3), strict=True):
        single = nn.Parameter(torch.zeros(8, 8))
        assert torch.allclose(step(Muon([{"params": [single]}], lr=0.1), single, [alone]), part, atol=1e-6)


def test_momentum_begins_low_and_warms_up() -> None:
    gradients = [random(8, 8), random(8, 8).flip(0)]
    weights = [nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    cold = step(Muon([{"params": [weights[0]]}], lr=0.1, momentum=0.85, warmup=0), weights[0], gradients)
    slow = step(Muon([{"params": [weights[1]]}], lr=0.1, momentum=0.95, warmup=10**9), weights[1], gradients)
    warm = step(Muon([{"params": [weights[2]]}], lr=0.1, momentum=0.95, warmup=0), weights[2], gradients)
    assert torch.allclose(cold, slow, atol=1e-6)
    assert not torch.allclose(cold, warm, atol=1e-3)


def test_only_the_matrices_of_blocks_are_given_to_it() -> None:
    model = GPT2(GPT2Config(vocab_size=11, context_length=8, n_layer=2, n_head=2, n_embd=8))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = build_optimizers(
        model.named_parameters(),
        OptimSettings(name="muon", beta2=0.95, lr=0.01, matrix_lr=0.05, weight_decay=0.1),
    )
    assert isinstance(muon, Muon)
    given = {names[id(p)]: group["parts"] for group in muon.param_groups for p in group["params"]}
    assert len(given) == 2 * 4
    assert given["h.0.attn.c_attn.weight"] == 3
    assert given["h.1.mlp.c_proj.weight"] == 1
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert rest | set(given) == set(names.values())
    assert not rest & set(given)
    (alone,) = build_optimizers(
        model.named_parameters(), OptimSettings(name="adamw", beta2=0.99, lr=0.01, weight_decay=0)
    )
    assert sum(len(group["params"]) for group in alone.param_groups) == len(names)
