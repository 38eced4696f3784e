"""How fast this machine trains: real optimizer steps on made-up tokens, for a second or two."""

import functools
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt2.config.presets import Shape
from gpt2.config.resolve import resolve_micro_batch, resolve_optim
from gpt2.config.schema import ModelSettings, OptimSettings
from gpt2.model.cost import flops_per_token
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.optim.build import build_optimizers
from gpt2.runtime import (
    activation_memory,
    autocast,
    is_out_of_memory,
    keep_freed_memory,
    pick_matrix_precision,
    pick_precision,
)
from gpt2.training.guard import Guard
from gpt2.training.loss import NextTokenLoss
from gpt2.training.plan import Plan
from gpt2.training.trainer import Trainer

LEAST_SECONDS, LEAST_STEPS = 0.7, 2
"""Of a measurement; whichever takes longer."""


class Meter:
    """Seconds of an optimizer step on this machine, measured for some shapes and estimated from these for others.

    Args:
        device: where the run will train.
        vocab_size: ids of its tokenizer.
        precision: as in the settings.
        optim: as given.
    """

    def __init__(self, device: torch.device, vocab_size: int, precision: str, optim: OptimSettings) -> None:
        self.device = device
        self.vocab_size = vocab_size
        self.precision = precision
        self.optim = optim
        self._seconds: dict[tuple[Shape, int], float] = {}

    def measured(self, shape: Shape, batch_size: int) -> bool:
        """Whether `seconds` is a measurement, of this shape with about this batch, and not an estimate."""
        return any(known == shape and 0.8 < batch / batch_size < 1.25 for known, batch in self._seconds)

    def seconds(self, shape: Shape, batch_size: int) -> float:
        """Of a step: by the arithmetic it takes, at the rate (FLOP/s) of what was measured next to it.

        Between two measured steps the rate is interpolated, on logarithmic scales.
        """
        work = self._flops(shape, batch_size)
        known = [(self._flops(*step), seconds) for step, seconds in self._seconds.items()]
        points = sorted((math.log(flops), math.log(flops / seconds)) for flops, seconds in known)
        at = math.log(work)
        (before, rate), *_ = [point for point in reversed(points) if point[0] <= at] or points
        (after, later), *_ = [point for point in points if point[0] >= at] or points[::-1]
        share = (at - before) / (after - before) if after > before else 0.0
        return work / math.exp(rate + share * (later - rate))

    def measure(self, shape: Shape, batch_size: int) -> None:
        """Make some steps of this shape. Where memory does not suffice, a step takes for ever."""
        try:
            self._seconds[shape, batch_size] = self._measured(shape, batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._seconds[shape, batch_size] = 1e9

    def _flops(self, shape: Shape, batch_size: int) -> float:
        return batch_size * shape.context_length * flops_per_token(self._config(shape))

    def _config(self, shape: Shape) -> GPT2Config:
        return GPT2Config(self.vocab_size, shape.context_length, shape.n_layer, shape.n_head, shape.n_embd)

    def _measured(self, shape: Shape, batch_size: int) -> float:
        keep_freed_memory()
        model = GPT2(self._config(shape))
        model.init_weights(torch.Generator().manual_seed(0))
        model = model.to(self.device)
        optim = resolve_optim(self.optim, shape.n_embd, batch_size * shape.context_length, steps=1, strain=1)
        precision = pick_precision(self.precision, self.device)
        format_of_matrices = pick_matrix_precision(optim.matrix_precision, self.precision, self.device)
        optim = optim.model_copy(update={"matrix_precision": format_of_matrices})
        sizes = ModelSettings(**shape._asdict())
        micro = resolve_micro_batch(sizes, self.vocab_size, batch_size, activation_memory(self.device))
        trainer = Trainer(
            model=model,
            objective=NextTokenLoss(model),
            optimizers=build_optimizers(model.named_parameters(), optim),
            schedule=lambda step: 1e-3,
            loader=_Noise(batch_size, shape.context_length, self.vocab_size),
            guard=Guard(0.0),
            plan=Plan(micro, 1.0, lambda step: step, functools.partial(autocast, precision, self.device)),
            started=time.monotonic(),
        )
        trainer.train_step()  # the first one allocates
        took: list[float] = []
        while len(took) < LEAST_STEPS or sum(took) < LEAST_SECONDS:
            began = time.perf_counter()
            trainer.train_step()
            took.append(time.perf_counter() - began)
        return statistics.median(took)


class _Noise:
    """Batches of random tokens."""

    def __init__(self, batch_size: int, context_length: int, vocab_size: int) -> None:
        shape = (batch_size, context_length)
        self._batch = torch.randint(vocab_size, shape), torch.randint(vocab_size, shape)
        self.epoch = 0.0

    def next_batch(self) -> tuple[Tensor, Tensor]:
        return self._batch

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass
