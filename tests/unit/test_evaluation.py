"""The mean loss of a part: each token once, in double precision, and a device that is not waited for at each batch."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.evaluation.loss import mean_loss


class Summed(nn.Module):
    """An objective: the sum of the inputs times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (self.weight * inputs).sum(), torch.tensor(targets.numel())


class Reads(TorchDispatchMode):
    """Counts numbers that Python asks a device for, one at a time."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_batches_are_added_in_double_precision_and_none_is_waited_for() -> None:
    batches = [(torch.full((1, 1), value), torch.zeros(1, 1), 1) for value in (2.0**24, 1.0, 1.0)]
    with Reads() as reads:
        assert mean_loss(Summed(), batches, nullcontext) == (2**24 + 2) / 3
    assert reads.count == 0


def test_tokens_weigh_the_same_in_batches_of_any_size() -> None:
    batches = [(torch.full((1, n), value), torch.zeros(1, n), n) for n, value in ((1, 5.0), (4, 2.5))]
    objective = Summed()
    assert mean_loss(objective, batches, nullcontext) == pytest.approx(3.0)
    assert objective.training
