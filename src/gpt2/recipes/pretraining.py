"""What a run on running text learns: windows of tokens, every token of which is to be predicted."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gpt2.config.schema import Settings
from gpt2.corpus.doctor import Report, examine
from gpt2.corpus.prepare import Prepared
from gpt2.corpus.shards import TokenShards
from gpt2.data.dataset import GPTDataset, evaluation_windows
from gpt2.data.loader import Loader
from gpt2.distributed import World
from gpt2.evaluation.baselines import Baselines
from gpt2.files import write_json
from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.recipes import showing
from gpt2.recipes.data import show
from gpt2.runtime import derive_seed
from gpt2.training import trainer
from gpt2.training.loss import NextTokenLoss
from gpt2.weights.huggingface import load_model


class Task(Protocol):
    """What one kind of run has of its own: weights to begin with, batches, a validation part, and what it shows."""

    def model(self, saved: Path | None) -> GPT2:
        """The model as a checkpoint of the run has it, or before its first step."""
        ...

    def objective(self, model: GPT2) -> nn.Module:
        """Inputs and targets → the sum of the loss, and over how much."""
        ...

    def loader(self) -> trainer.Loader:
        """The batches of the training part, for this process."""
        ...

    def introduce(self, model: GPT2, device: torch.device, new: bool) -> None:
        """Say what is about to be trained; `new`: the run has no report yet."""
        ...

    def references(self, measure: Callable[[], float] | None) -> Mapping[str, float]:
        """Losses that give this run's a meaning, by name. `measure` is there before the first step only."""
        ...

    def validation(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The validation part: inputs and targets (B, T), and how many targets count."""
        ...

    def sample(self, model: GPT2, step: int) -> dict[str, Any] | None:
        """Let the model speak: → the line for samples.jsonl, if there is one."""
        ...

    def conclude(self, model: GPT2, outcome: str, references: Mapping[str, float], step: int, started: float) -> None:
        """How it ended, and what to do next; the command has `started` then, by the monotonic clock."""
        ...


@dataclass(frozen=True, slots=True)
class Pretraining:
    """A run on text and tables, from new weights. Methods are those of `Task`."""

    folder: Path
    settings: Settings
    prepared: Prepared
    world: World

    def model(self, saved: Path | None) -> GPT2:
        """That of a checkpoint; else weights fixed by the seed."""
        if saved is not None:
            return load_model(saved, dropout=self.settings.model.dropout)
        model = GPT2(model_config(self.settings, self.prepared))
        model.init_weights(torch.Generator().manual_seed(derive_seed(self.settings.train.seed, "weights")))
        return model

    def objective(self, model: GPT2) -> nn.Module:
        """Each token from those before it."""
        return NextTokenLoss(model)

    def loader(self) -> Loader:
        """Windows in a keyed order."""
        return build_loader(self.settings, self.prepared, self.world)

    def introduce(self, model: GPT2, device: torch.device, new: bool) -> None:
        """The table of the data beside the model, and a paragraph on the run."""
        report = _report(self.settings, self.prepared, self.loader())
        if new:
            write_json(self.folder / "report.json", report.to_json())
            show(report)
        showing.announce(self.settings, report, device, self.world, self._validation())

    def references(self, measure: Callable[[], float] | None) -> Mapping[str, float]:
        """What guessing, and counting tokens and pairs of tokens, would reach."""
        self.world.from_main(lambda: showing.reference_lines(self.prepared, self._validation())._asdict())
        return showing.reference_lines(self.prepared, self._validation())._asdict()

    def validation(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Every token but the first, once; of a large part, evenly spread windows."""
        assert self.settings.model.context_length
        context, limit = self.settings.model.context_length, self.settings.train.eval_tokens
        return evaluation_windows(self._validation(), context, batch_size, limit)

    def sample(self, model: GPT2, step: int) -> dict[str, Any] | None:
        """A text that goes on from the sample prompt."""
        return showing.sample(self.settings, self.prepared, model, step)

    def conclude(self, model: GPT2, outcome: str, references: Mapping[str, float], step: int, started: float) -> None:
        """The best loss beside the references."""
        lines = Baselines(**references)
        showing.conclude(self.folder, self.settings, model.config, self.prepared, outcome, lines, step, started)

    def _validation(self) -> TokenShards:
        return TokenShards(self.prepared.folder, "validation")


def model_config(settings: Settings, prepared: Prepared) -> GPT2Config:
    """The sizes of a run's model."""
    sizes = settings.model
    assert sizes.context_length and sizes.n_layer and sizes.n_head and sizes.n_embd, "resolve the model first"
    assert sizes.dropout is not None, "resolve the training first"
    return GPT2Config(
        vocab_size=prepared.stats.vocab_size,
        context_length=sizes.context_length,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_embd=sizes.n_embd,
        dropout=sizes.dropout,
    )


def build_loader(settings: Settings, prepared: Prepared, world: World) -> Loader:
    """The batches of a run's training part, for this process."""
    assert settings.model.context_length
    return Loader(
        TokenShards(prepared.folder, "train"),
        context_length=settings.model.context_length,
        stride=settings.data.stride,
        batch_size=settings.train.batch_size,
        seed=derive_seed(settings.train.seed, "order"),
        rank=world.rank,
        world_size=world.size,
    )


def _report(settings: Settings, prepared: Prepared, loader: Loader) -> Report:
    assert settings.train.steps and settings.model.context_length
    config = model_config(settings, prepared)
    report = Report(
        stats=prepared.stats,
        context_length=config.context_length,
        parameters=parameters(config),
        train_windows=loader.windows_per_epoch,
        validation_windows=len(GPTDataset(TokenShards(prepared.folder, "validation"), config.context_length)),
        steps=settings.train.steps,
        batch_size=settings.train.batch_size,
    )
    return replace(report, warnings=examine(report))
