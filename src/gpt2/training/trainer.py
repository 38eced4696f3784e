"""The step. It knows no GPT: data, objective, optimizers and what happens in between are given to it."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gpt2.distributed import World, whole
from gpt2.optim.optimizer import Optimizer
from gpt2.runtime import is_out_of_memory
from gpt2.training.averaging import Averaging
from gpt2.training.batch import Batch, Loader
from gpt2.training.guard import PASSED_OVER_AT_MOST, DivergedError, Guard
from gpt2.training.metrics import Record
from gpt2.training.plan import Plan

T = TypeVar("T")

REHEARSALS = 2
"""The second one with what the optimizers keep since the first update."""


class StopWished(Exception):  # noqa: N818 - nothing has gone wrong
    """What was going on is broken off: the run is to stop."""


class _MemoryEnded(Exception):  # noqa: N818 - the step is made again
    """In one of the processes, and all know of it."""


Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Inputs and targets, each (B, T) → sum of the loss over counted targets, and their number."""


class Trainer:
    """Makes optimizer steps, one call each; between two calls everything can be saved and restored.

    Args:
        model: the weights, as they are saved.
        objective: computes the loss of a micro-batch.
        optimizers: their groups carry `peak_lr`.
        schedule: step → multiple of the peak rate.
        loader: where batches come from.
        guard: which steps may reach the weights.
        plan: how a step is made.
        started: `time.monotonic()` when the command began.
        world: the processes that train together.
        wish: whether this process has been asked to stop; see `stop_wished`.
        shrunk: is told of a smaller micro-batch: steps made before, and its size.
        averaging: what is measured and saved in place of the last weights; else these.
        once: the objective for a batch of a size that does not come again, which nothing is to be compiled for.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizers: Sequence[Optimizer],
        schedule: Callable[[int], float],
        loader: Loader,
        guard: Guard,
        plan: Plan,
        started: float,
        world: World | None = None,
        wish: Callable[[], bool] = lambda: False,
        shrunk: Callable[[int, int], None] = lambda step, size: None,
        averaging: Averaging | None = None,
        once: Objective | None = None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.once = once or objective
        self.optimizers = optimizers
        self.schedule = schedule
        self.loader = loader
        self.guard = guard
        self.plan = plan
        self.started = started
        self.world = world or World()
        self.wish = wish
        self.shrunk = shrunk
        self.averaging = averaging or Averaging(optimizers, lambda step: 0.0)
        self._sizes = [(0, plan.micro_batch_size), *plan.shrunk]
        self.stop_wished = False
        """Whether any process has been asked to stop, as of the last time that all looked: the same in all of them."""
        self.objection = ""
        """To the last batch that was passed over, in words."""
        self.step = 0
        self.tokens = 0
        self.epoch = loader.epoch
        """Passes over the data that have reached the weights, a fraction."""
        self.device = next(model.parameters()).device
        self._ahead: Batch | None = None
        self._summing = False
        """Whether gradients are being summed: the others wait for this process's."""
        self._summed = self.world.size == 1 or not plan.independent
        """Whether gradients have been summed once, or are not summed in buckets."""
        self._rehearsals = 0 if self._summed else REHEARSALS
        self._loader_state = loader.state()

    def train_step(self) -> Record:
        """One optimizer step: a batch in micro-batches, the gradient of the mean loss over all its tokens, an update.

        A batch whose loss or gradient is no number, or jumps, is passed over and the next one is taken in its place.

        Raises:
            DivergedError: too many batches in a row were bad. The weights are those of the step before.
        """
        began = time.perf_counter()
        self.model.train()
        skipped, tokens = 0, 0
        while True:
            batch = self._ahead or self._fetch()
            self._ahead = None
            self._loader_state, self.epoch = batch.loader, batch.epoch
            loss, norm, counted, read = self._gradient_that_fits(batch)
            tokens += read
            objection = self.guard.objection(loss, norm, counted)
            if objection is None:
                break
            self._forget_gradient()
            self.objection = objection
            skipped += 1
            if skipped > PASSED_OVER_AT_MOST:
                raise DivergedError(f"At step {self.step + 1} {objection}, for {skipped} batches in a row.")
        rate = self._update(norm)
        self.step += 1
        self.tokens += tokens
        return Record(
            step=self.step,
            epoch=round(self.epoch, 4),
            tokens=self.tokens,
            seconds=self.seconds,
            train_loss=loss,
            lr=rate,
            grad_norm=norm,
            tokens_per_second=round(tokens / (time.perf_counter() - began), 1),
            skipped=skipped or None,
        )

    @property
    def micro_batch_size(self) -> int:
        """Sequences in memory at once: halved where memory ends. A step that is made again has as many as before."""
        return min(size for step, size in self._sizes if step <= self.step)

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return round(time.monotonic() - self.started, 3)

    def heeding(self, batches: Iterable[T]) -> Iterator[T]:
        """Batches of something else than steps; before each, all processes look whether one of them is to stop.

        Raises:
            StopWished: one is. In all of them at the same batch: they may be computing together.
        """
        for batch in batches:
            # On the CPU, whatever the device: its queue is not waited for.
            self.stop_wished = self.stop_wished or self.world.sum(torch.tensor(float(self.wish()))).item() > 0
            if self.stop_wished:
                raise StopWished
            yield batch

    def _fetch(self) -> Batch:
        inputs, targets = self.loader.next_batch()  # (B/W, T)
        if self.device.type == "cuda":
            inputs = inputs.pin_memory().to(self.device, non_blocking=True)
            targets = targets.pin_memory().to(self.device, non_blocking=True)
        else:
            inputs, targets = inputs.to(self.device), targets.to(self.device)
        return Batch(inputs, targets, self.loader.state(), self.loader.epoch)

    def _gradient_that_fits(self, batch: Batch) -> tuple[float, float, float, int]:
        """`_gradient`; where memory ends on the way, once more from the batch's beginning in halved micro-batches.

        Of several processes all begin again, if memory ends in one in a forward pass: they meet at its end, when there
        are as many activations as ever; before each backward pass where they compute together, else before the last.
        """
        if not self._summed:
            # After its first sum DDP puts gradients into other buckets, and in these more than two numbers are added in
            # another order. A run that goes on begins with the ones of its beginning: so no step of any run does.
            self._sum_of_little(batch)
            self._forget_gradient()
            self._summed = True
        while True:
            self._summing = False
            try:
                return self._gradient(batch)
            except _MemoryEnded:
                if self.micro_batch_size == 1:
                    raise torch.OutOfMemoryError("Memory has ended in one of the processes.") from None
            except RuntimeError as error:
                together = self.world.size > 1 and (self._summing or not self.plan.independent)
                if not is_out_of_memory(error) or self.micro_batch_size == 1 or together:
                    raise
                self._meet(True)
            # Outside of the handler: the error holds the frames, and they the activations.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if self.world.size > 1:
                self._sum_of_little(batch)
            self._forget_gradient()
            self._sizes.append((self.step, (min(self.micro_batch_size, len(batch.inputs)) + 1) // 2))
            self.shrunk(*self._sizes[-1])

    def _meet(self, ended: bool) -> bool:
        """Whether memory has ended in any process; each says so of itself."""
        if not (self.plan.independent or self.plan.ended):
            return ended
        # On the CPU, whatever the device: its queue is not waited for.
        return self.world.sum(torch.tensor(int(ended))).item() > 0

    def _sum_of_little(self, batch: Batch) -> None:
        """A sum of gradients that takes next to no memory: where the last forward pass was begun, one is due."""
        with self.plan.autocast():
            total, _ = self.once(batch.inputs[:1], batch.targets[:1])
        if self.plan.ended and self.plan.ended():
            raise torch.OutOfMemoryError("Memory has ended even for one sequence.")
        total.backward()

    def _forget_gradient(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def _rehearse(self, batch: Batch) -> None:
        """Go through a batch of one part before others wait for its gradient: memory that ends then ends the run.

        Where there are several parts, the ones before the last show whether memory suffices.
        """
        with self.plan.without_sum():
            with self.plan.autocast():
                total, _ = self.objective(batch.inputs, batch.targets)
            total.backward()
        self._forget_gradient()
        self._rehearsals -= 1

    def _gradient(self, batch: Batch) -> tuple[float, float, float, int]:
        """Leave the mean loss's gradient in the weights: the loss, the gradient's norm, tokens counted, and read."""
        if self._rehearsals and 1 < len(batch.inputs) <= self.micro_batch_size:
            self._rehearse(batch)
        # Each process drops other activations than its neighbours, and the same ones whenever it makes this step.
        torch.manual_seed(self.plan.step_seed(self.step) + self.world.rank)
        rows, size = len(batch.inputs), self.micro_batch_size
        share = batch.targets.numel()  # of this process; all have as many
        wide = torch.float32 if self.device.type == "mps" else torch.float64  # Apple's GPUs have no doubles
        sums = torch.zeros(3, dtype=wide, device=self.device)  # loss, counted targets, wishes to stop
        for start in range(0, rows, size):
            part = slice(start, start + size)
            last = start + size >= rows
            with contextlib.nullcontext() if last else self.plan.without_sum():
                with self.plan.autocast():
                    total, counted = self.objective(batch.inputs[part], batch.targets[part])
                ended = self.plan.ended is not None and self.plan.ended()
                if (last or self.plan.ended) and self._meet(ended):
                    raise _MemoryEnded
                self._summing = last
                (total / share).backward()
            sums[0] += total.detach()
            sums[1] += counted
        self._ahead = self._ahead or self._fetch()  # while the device still works
        sums[2] = float(self.wish())
        self.world.sum(sums)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        loss_sum, counted, wishes, norm = torch.cat([sums, norm.to(wide).reshape(1)]).tolist()  # waits for the device
        self.stop_wished = wishes > 0
        # Gradients were divided by all targets of the batch; those that do not count are taken out of the mean here.
        counted = max(counted, 1)
        scale = share * self.world.size / counted
        if scale != 1:
            for gradient in gradients:
                gradient.mul_(scale)
        return loss_sum / counted, norm * scale, counted, share * self.world.size

    def _update(self, norm: float) -> float:
        """Clip, set the rates, step: the rate of the last optimizer, AdamW's."""
        if 0 < self.plan.grad_clip < norm + 1e-6:  # where nothing is too large, there is nothing to multiply
            total = torch.tensor(norm, dtype=torch.float32, device=self.device)
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.plan.grad_clip, total)
        rate = self.schedule(self.step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * rate
            optimizer.step()
        self.averaging.take(self.step + 1)
        self._forget_gradient()
        return self.optimizers[-1].param_groups[0]["lr"]

    def state(self) -> dict[str, Any]:
        """What, beside weights and optimizers, continues the run from here; JSON values."""
        return {"step": self.step, "tokens": self.tokens, "loader": self._loader_state, "guard": self.guard.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state; weights and optimizers are restored by the caller."""
        self.step = int(state["step"])
        self.tokens = int(state["tokens"])
        self.guard.restore(state["guard"])
        self.loader.restore(state["loader"])
        self._ahead, self._loader_state, self.epoch = None, self.loader.state(), self.loader.epoch

    def pass_over(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state, but on the data that comes after what has been read by now."""
        position = self._loader_state
        self.restore(state)
        self.loader.restore(position)
        self._loader_state, self.epoch = self.loader.state(), self.loader.epoch
