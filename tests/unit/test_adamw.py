"""AdamW: the same numbers as PyTorch's own, and no compiler imported for it."""

import subprocess
import sys

import torch
from torch import nn

from gpt2.optim.adamw import AdamW


def test_steps_are_those_of_pytorch_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(9, 5, generator=generator), torch.randn(7, generator=generator)]
    ours = [nn.Parameter(value.clone()) for value in start]
    theirs = [nn.Parameter(value.clone()) for value in start]
    settings = {"lr": 0.03, "betas": (0.9, 0.95), "eps": 1e-8}

    def groups(weights: list[nn.Parameter]) -> list[dict]:
        return [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]

    a, b = AdamW(groups(ours), **settings), torch.optim.AdamW(groups(theirs), fused=True, **settings)
    for _ in range(5):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        a.step()
        b.step()
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))
    a.zero_grad()
    assert all(weight.grad is None for weight in ours)


def test_a_weight_without_gradient_stays() -> None:
    weights = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
    optimizer = AdamW([{"params": weights}], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5)
    weights[0].grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(weights[1], torch.ones(3))
    assert not torch.equal(weights[0], torch.ones(3))


def test_a_step_imports_no_compiler() -> None:
    script = """
import sys, torch
from torch import nn
from gpt2.config.schema import OptimSettings
from gpt2.optim.build import build_optimizers
named = [("h.0.mlp.c_fc.weight", nn.Parameter(torch.ones(4, 4))), ("ln_f.weight", nn.Parameter(torch.ones(4)))]
settings = OptimSettings(name="muon", lr=0.1, matrix_lr=0.1, beta2=0.9, weight_decay=0.1)
for optimizer in build_optimizers(named, settings):
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.zero_grad()
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
