"""The loop with a model that is no GPT."""

import contextlib
import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2.config.schema import OptimSettings
from gpt2.errors import UserError
from gpt2.optim.adamw import build_adamw
from gpt2.training.loss import cross_entropy
from gpt2.training.trainer import Plan, Trainer


class Batches:
    """The same eight sequences again and again."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randint(0, 11, (8, 6), generator=generator)
        self.targets = torch.randint(0, 11, (8, 6), generator=generator)
        self.given = 0

    @property
    def epoch(self) -> float:
        return float(self.given)

    def next_batch(self) -> tuple[Tensor, Tensor]:
        self.given += 1
        return self.inputs, self.targets

    def state(self) -> dict[str, Any]:
        return {"given": self.given}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.given = state["given"]


def make(micro_batch_size: int, grad_clip: float = 0.0, dropout: float = 0.0) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 16), nn.Dropout(dropout), nn.Linear(16, 11))
    optimizer = build_adamw(model.named_parameters(), OptimSettings(lr=0.01, weight_decay=0.0))
    plan = Plan(100, micro_batch_size, grad_clip, lambda step: step, contextlib.nullcontext)
    return Trainer(model, model, optimizer, lambda step: 1.0, Batches(), cross_entropy, plan, 0.0)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    """Also when they are unequal and when targets are masked unevenly: the mean is over all counted tokens."""
    whole, parts = make(8), make(3)
    for trainer in (whole, parts):
        loader = trainer.loader
        assert isinstance(loader, Batches)
        loader.targets = loader.targets.clone()
        loader.targets[0, :5] = -100
        loader.targets[7, 1:] = -100
    for _ in range(5):
        a, b = whole.train_step(), parts.train_step()
        assert a.train_loss == pytest.approx(b.train_loss, abs=1e-6)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


def test_the_gradient_is_clipped_but_its_whole_norm_is_told() -> None:
    free, clipped = make(8), make(8, grad_clip=1e-9)
    before = copy.deepcopy(clipped.model.state_dict())
    assert free.train_step().grad_norm == pytest.approx(clipped.train_step().grad_norm)
    moved = max((clipped.model.state_dict()[name] - value).abs().max().item() for name, value in before.items())
    assert 0 < moved <= 0.01 * 0.1  # lr · g / (g + eps), where g is at most a tenth of eps


def test_a_loss_that_is_no_number_stops_before_the_weights_are_touched() -> None:
    trainer = make(8)
    trainer.train_step()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.loss = lambda logits, targets: (logits.sum() * math.nan, targets.numel())  # type: ignore[assignment, return-value]
    with pytest.raises(UserError, match="step 2"):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.step == 1


def test_dropout_depends_on_the_step_and_not_on_what_ran_before() -> None:
    a, b = make(8, dropout=0.5), make(8, dropout=0.5)
    torch.manual_seed(1234)
    torch.rand(77)
    assert a.train_step().train_loss == b.train_step().train_loss


def test_only_matrices_decay() -> None:
    model = nn.ModuleDict(
        {"wte": nn.Embedding(3, 4), "wpe": nn.Embedding(3, 4), "ln": nn.LayerNorm(4), "c": nn.Linear(4, 4)}
    )
    groups = build_adamw(model.named_parameters(), OptimSettings(lr=0.1, weight_decay=0.5)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {"wte.weight", "c.weight"}
    assert sum(len(group["params"]) for group in groups) == 6


def test_the_loss_is_a_sum_and_a_count() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, -100, 2], [-100, 0, 4]])
    total, counted = cross_entropy(logits, targets)
    by_hand = -sum(logits[b, t].log_softmax(0)[targets[b, t]] for b, t in ((0, 0), (0, 2), (1, 1), (1, 2)))
    assert counted == 4
    assert total.item() == pytest.approx(float(by_hand), abs=1e-5)
