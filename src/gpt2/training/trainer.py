"""The loop. It knows no GPT: model, data, loss, optimizer and what happens in between are given to it."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.errors import UserError
from gpt2.training.metrics import Record


class Loader(Protocol):
    """Gives batches in an order that is a formula of its state."""

    @property
    def epoch(self) -> float:
        """Passes over the data done, a fraction."""
        ...

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the next optimizer step, each of shape (B, T)."""
        ...

    def state(self) -> dict[str, Any]:
        """What continues the order from here."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        ...


LossFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How an optimizer step is made, and how many there are."""

    steps: int
    micro_batch_size: int
    grad_clip: float
    step_seed: Callable[[int], int]
    """Optimizer step → seed of its dropout. So the state of a random generator never has to be saved."""
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]


class Trainer:
    """Makes optimizer steps, one call each; between two calls everything can be saved and restored.

    Args:
        model: the weights, as they are saved.
        forward: what computes logits: the model itself, or its compiled form.
        optimizer: its groups carry `peak_lr`.
        schedule: step → multiple of the peak rate.
        loader: where batches come from.
        loss: logits and targets → (sum, count).
        plan: numbers of the run.
        started: `time.monotonic()` when the command began.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        loader: Loader,
        loss: LossFunction,
        plan: Plan,
        started: float,
    ) -> None:
        self.model = model
        self.forward = forward
        self.optimizer = optimizer
        self.schedule = schedule
        self.loader = loader
        self.loss = loss
        self.plan = plan
        self.started = started
        self.step = 0
        self.tokens = 0
        self.device = next(model.parameters()).device

    def train_step(self) -> Record:
        """One optimizer step: a batch in micro-batches, the gradient of the mean loss over all its tokens, an update.

        Raises:
            UserError: loss or gradient is no longer a finite number. The weights are still those of the step before.
        """
        began = time.perf_counter()
        torch.manual_seed(self.plan.step_seed(self.step))
        self.model.train()
        inputs, targets = self.loader.next_batch()  # (B, T)
        if self.device.type == "cuda":
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        counted = (targets >= 0).sum().item()
        size = self.plan.micro_batch_size
        loss_sum = torch.zeros((), device=self.device)
        for start in range(0, len(inputs), size):
            micro_inputs = inputs[start : start + size].to(self.device, non_blocking=True)
            micro_targets = targets[start : start + size].to(self.device, non_blocking=True)
            with self.plan.autocast():
                total, _ = self.loss(self.forward(micro_inputs), micro_targets)
            (total / counted).backward()
            loss_sum += total.detach()
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.grad_clip or math.inf)
        train_loss = loss_sum.item() / counted
        norm = grad_norm.item()
        if not (math.isfinite(train_loss) and math.isfinite(norm)):
            raise UserError(
                f"At step {self.step + 1} the loss is {train_loss:g} and the gradient's norm {norm:g}.",
                "The rate is probably too high: train again with half of --optim.lr. The last checkpoint is intact.",
            )
        rate = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += inputs.numel()
        return Record(
            step=self.step,
            epoch=round(self.loader.epoch, 4),
            tokens=self.tokens,
            seconds=round(time.monotonic() - self.started, 3),
            train_loss=train_loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=norm,
            tokens_per_second=round(inputs.numel() / (time.perf_counter() - began), 1),
        )

    def state(self) -> dict[str, Any]:
        """What, beside weights and optimizer, continues the run from here; JSON values."""
        return {"step": self.step, "tokens": self.tokens, "loader": self.loader.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; weights and optimizer are restored by the caller."""
        self.step = int(state["step"])
        self.tokens = int(state["tokens"])
        self.loader.restore(state["loader"])


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, `WEIGHT/KEY`, for a file without pickle."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put named tensors back into an optimizer over the same weights."""
    parameters = dict(model.named_parameters())
    optimizer.state.clear()
    for name, tensor in tensors.items():
        weight, _, key = name.rpartition("/")
        parameter = parameters[weight]
        # A counter of steps stays where the optimizer keeps it; moments lie beside their weight. Cloned, because the
        # tensors of a safetensors file are views of one buffer.
        device = tensor.device if tensor.dim() == 0 and parameter.device.type == "cpu" else parameter.device
        optimizer.state[parameter][key] = tensor.clone().to(device)
