"""The loop with a model that is no GPT."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gpt2.config.schema import OptimSettings
from gpt2.optim.adamw import build_adamw
from gpt2.optim.build import build_optimizers
from gpt2.training.guard import DivergedError, Guard
from gpt2.training.loss import IGNORED, linear_cross_entropy
from gpt2.training.plan import Plan
from gpt2.training.trainer import StopWished, Trainer


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


def make(
    micro_batch_size: int, grad_clip: float = 0.0, dropout: float = 0.0, shrunk: tuple[tuple[int, int], ...] = ()
) -> Trainer:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(11, 16), nn.Dropout(dropout), nn.Linear(16, 11))
    optimizers = build_optimizers(
        model.named_parameters(), OptimSettings(name="adamw", beta2=0.99, lr=0.01, weight_decay=0.0)
    )
    plan = Plan(micro_batch_size, grad_clip, lambda step: step, shrunk=shrunk)

    def objective(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        total = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="sum")
        return total, (targets != IGNORED).sum()

    return Trainer(model, objective, optimizers, lambda step: 1.0, Batches(), Guard(6.0), plan, 0.0)


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


def test_a_bad_batch_does_not_reach_the_weights_and_the_next_is_taken() -> None:
    trainer, clean = make(8), make(8)
    for _ in range(3):
        trainer.train_step()
        clean.train_step()
    objective, calls = trainer.objective, iter([math.nan, math.inf])
    trainer.objective = lambda inputs, targets: (objective(inputs, targets)[0] * next(calls, 1.0), targets.numel())  # type: ignore[assignment, return-value]
    record = trainer.train_step()
    clean.train_step()
    assert record.skipped == 2
    assert trainer.objection.startswith("the loss is inf")
    assert trainer.step == clean.step == 4
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, clean.model.state_dict()[name])  # all batches are alike here


def test_when_every_batch_is_bad_it_is_said_and_the_weights_are_whole() -> None:
    trainer = make(8)
    trainer.train_step()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.objective = lambda inputs, targets: (trainer.model(inputs).sum() * math.nan, targets.numel())  # type: ignore[assignment, return-value]
    with pytest.raises(DivergedError, match="step 2"):
        trainer.train_step()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.step == 1


def test_dropout_depends_on_the_step_and_not_on_what_ran_before() -> None:
    a, b = make(8, dropout=0.5), make(8, dropout=0.5)
    torch.manual_seed(1234)
    torch.rand(77)
    assert a.train_step().train_loss == b.train_step().train_loss


def test_a_stop_that_is_wished_between_two_batches_of_a_validation_is_heeded_before_the_next() -> None:
    trainer, seen = make(8), []
    trainer.wish = lambda: len(seen) == 2
    with pytest.raises(StopWished):
        for batch in trainer.heeding(range(9)):
            seen.append(batch)
    assert seen == [0, 1]
    assert trainer.stop_wished


def test_only_matrices_decay() -> None:
    model = nn.ModuleDict(
        {"wte": nn.Embedding(3, 4), "wpe": nn.Embedding(3, 4), "ln": nn.LayerNorm(4), "c": nn.Linear(4, 4)}
    )
    groups = build_adamw(model.named_parameters(), OptimSettings(lr=0.1, beta2=0.99, weight_decay=0.5)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {"wte.weight", "c.weight"}
    assert sum(len(group["params"]) for group in groups) == 6


def test_the_loss_is_a_sum_and_a_count() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, -100, 2], [-100, 0, 4]])
    total, counted = linear_cross_entropy(logits, torch.eye(5), targets)
    by_hand = -sum(logits[b, t].log_softmax(0)[targets[b, t]] for b, t in ((0, 0), (0, 2), (1, 1), (1, 2)))
    assert counted == 4
    assert total.item() == pytest.approx(float(by_hand), abs=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 4, 5, 1000])
def test_in_chunks_it_is_the_same_loss_with_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 8, generator=generator, requires_grad=True)
    matrix = torch.randn(31, 8, generator=generator, requires_grad=True)
    targets = torch.randint(0, 31, (3, 7), generator=generator)
    targets[1, 2:5] = IGNORED
    monkeypatch.setattr("gpt2.training.loss.CHUNK_BYTES", {"cpu": 4 * 31 * rows_at_once})
    monkeypatch.setattr("gpt2.training.loss.CACHED_BYTES", {"cpu": 4 * 31 * 4 - 1})  # 3 rows
    total, counted = linear_cross_entropy(hidden, matrix, targets)
    logits = (hidden @ matrix.T).flatten(0, 1)
    plain = nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    assert counted == 18
    assert torch.allclose(total, plain, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(3 * loss, [hidden, matrix]) for loss in (total, plain))
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5)


def test_without_gradients_only_the_logits_are_computed_and_the_loss_is_the_same_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, 16, generator=generator)
    matrix = nn.Parameter(torch.randn(31, 16, generator=generator))
    targets = torch.randint(0, 31, (2, 6), generator=generator)
    learning, _ = linear_cross_entropy(hidden, matrix, targets)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        total, _ = linear_cross_entropy(hidden, matrix, targets)
    assert torch.equal(total, learning)
    assert counter.get_total_flops() == 2 * 12 * 16 * 31


@pytest.mark.parametrize("vocabulary", [31, 128, 300])
def test_under_autocast_gradients_come_in_the_format_of_the_weights(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, 16, generator=generator, requires_grad=True)
    matrix = torch.randn(vocabulary, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, vocabulary, (2, 6), generator=generator)
    grads = []
    for on in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            total, _ = linear_cross_entropy(hidden, matrix, targets)
        grads.append(torch.autograd.grad(total, [hidden, matrix]))
    for low, exact in zip(*grads, strict=True):
        assert low.dtype == torch.float32
        assert not torch.equal(low, exact)  # bf16 was at work
        assert torch.allclose(low, exact, atol=0.15)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: …")]
)
def test_where_memory_ends_the_step_is_made_again_in_smaller_parts(error: RuntimeError) -> None:
    """From the third step on, three sequences are too many, in forward or after the next batch was read."""
    told: list[tuple[int, int]] = []
    roomy, tight = make(8, dropout=0.3, shrunk=((2, 4), (2, 2))), make(8, dropout=0.3)
    forward, tight.shrunk = tight.objective, lambda step, size: told.append((step, size))

    def objective(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        if len(inputs) > 2 and tight.step >= 2:
            raise error
        return forward(inputs, targets)

    tight.objective = objective
    for _ in range(5):
        a, b = roomy.train_step(), tight.train_step()
        assert (a.train_loss, a.grad_norm, a.tokens) == (b.train_loss, b.grad_norm, b.tokens)
    assert told == list(roomy.plan.shrunk), "a run that goes on from before makes the same steps"
    assert roomy.state() == tight.state(), "no batch was lost"


def test_where_memory_ends_for_one_sequence_the_error_is_the_users() -> None:
    trainer = make(2)

    def objective(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.objective = objective
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train_step()
    assert trainer.micro_batch_size == 1
    assert trainer.step == 0


def test_memory_that_ends_after_the_next_batch_was_read_loses_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy, tight = make(4), make(8)
    norm, failures = nn.utils.get_total_norm, iter([True])

    def total_norm(gradients: list[Tensor]) -> Tensor:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return norm(gradients)

    with monkeypatch.context() as patch:
        patch.setattr(nn.utils, "get_total_norm", total_norm)
        tight.train_step()
    roomy.train_step()
    assert roomy.state() == tight.state()
    assert tight.loader.state() == roomy.loader.state()
