"""What a run on conversations learns: the answers in them, from the weights of a model that has read text."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.chat.template import RoleFormat
from gpt2.config.schema import Settings, TuningSettings
from gpt2.console import counted, say, table
from gpt2.corpus.prepare import Prepared
from gpt2.corpus.shards import TokenShards
from gpt2.data.conversations import ConversationLoader, ConversationRows, answer_targets, conversation_batches
from gpt2.data.dataset import IGNORED, evaluation_windows
from gpt2.data.preferences import PreferenceRows
from gpt2.distributed import World
from gpt2.evaluation.loss import mean_loss
from gpt2.files import read_json, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.generation.stream import printable
from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2
from gpt2.model.low_rank import merged, with_low_rank
from gpt2.recipes import showing
from gpt2.recipes.snapshot import restore_weights
from gpt2.runtime import autocast, derive_seed
from gpt2.tokenizer.roles import roles_of
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training import checkpoint
from gpt2.training.loss import NextTokenLoss
from gpt2.training.metrics import read_metrics
from gpt2.training.preference import PreferenceLoss
from gpt2.weights.grow import with_more_ids
from gpt2.weights.huggingface import load_model

BASE = "base"
"""Of a run's folder, the part that keeps the weights it began with."""
BEFORE = "before tuning"
TEXT_TOKENS = 20_000
"""Of the text that the base validated on, to see what was forgotten of it."""


@dataclass(frozen=True)
class Tuning:
    """A run on conversations. Methods are those of `Task`."""

    folder: Path
    settings: Settings
    prepared: Prepared
    world: World

    @property
    def tuning(self) -> TuningSettings:
        """What is tuned."""
        assert self.settings.tuning is not None
        return self.settings.tuning

    def rows(self, part: str) -> ConversationRows | PreferenceRows:
        """The conversations of the training or validation part."""
        roles = roles_of(self.prepared.tokenizer)
        assert roles is not None, "prepared conversations have a tokenizer with marks"
        kind = PreferenceRows if self.tuning.preferences else ConversationRows
        return kind(TokenShards(self.prepared.folder, part), roles)

    @cached_property
    def validating(self) -> ConversationRows | PreferenceRows:
        """The conversations of the validation part."""
        return self.rows("validation")

    def turns(self) -> int:
        """Answers in the longest conversation of the training part."""
        rows = self.rows("train")
        return max(int((rows.ids(index) == rows.roles.assistant).sum()) for index in range(len(rows)))

    def model(self, saved: Path | None) -> GPT2:
        """That of a checkpoint; else the base's weights, with rows for the marks of speakers where it has none."""
        lora, dropout = self.tuning.lora, self.settings.model.dropout
        if saved is not None and not lora.rank:
            return load_model(saved, dropout=dropout)
        model = self._base(dropout)
        if lora.rank:
            generator = torch.Generator().manual_seed(derive_seed(self.settings.train.seed, "weights"))
            model = with_low_rank(model, lora.rank, lora.alpha or 2.0 * lora.rank, self._first_mark, generator)
            if saved is not None:
                restore_weights(model, saved)
        return model

    @property
    def _base_folder(self) -> Path:
        """In this run, or in that which it was forked from."""
        own = self.folder / BASE
        return own if own.is_dir() else Path(self.tuning.base)

    @property
    def _first_mark(self) -> int:
        return min(self.validating.roles.all)

    def _base(self, dropout: float | None) -> GPT2:
        model = load_model(self._base_folder, dropout=dropout)
        if roles_of(load_tokenizer(self._base_folder)) is None:
            model = with_more_ids(model, self._first_mark, self.prepared.tokenizer.vocab_size)
        return model

    def objective(self, model: GPT2) -> NextTokenLoss | PreferenceLoss:
        """Each token of answers from those before it; or which of two answers is preferred."""
        if self.tuning.preferences:
            return PreferenceLoss(model, self._base(dropout=0.0), self.tuning.beta)
        return NextTokenLoss(model)

    def loader(self) -> ConversationLoader:
        """Conversations in a keyed order, and a share of the base's text among them."""
        text = self.tuning.text if self.tuning.replay else None
        return ConversationLoader(
            self.rows("train"),
            batch_size=self.settings.train.batch_size,
            seed=derive_seed(self.settings.train.seed, "order"),
            text=TokenShards(Path(text), "train") if text else None,
            replay=self.tuning.replay,
            rank=self.world.rank,
            world_size=self.world.size,
        )

    def introduce(self, model: GPT2, device: torch.device, new: bool) -> None:
        """The table of the conversations, and a paragraph on the run."""
        train, stats = self.settings.train, self.prepared.stats
        batches = self.loader().batches_per_epoch
        if new:
            write_json(self.folder / "report.json", {"stats": stats.to_json(), "parameters": parameters(model.config)})
            parts = [_counted(self.rows("train")), _counted(self.validating)]
            rows = [(name, *(part[name] for part in parts)) for name in parts[0]]
            table("Pairs of answers" if self.tuning.preferences else "Conversations", rows, _COLUMNS)
            say(f"Validation: {stats.split}. Tokenizer: {stats.tokenizer} and 4 marks of speakers.", style="dim")
        steps = train.steps or 0
        size = f"{parameters(model.config):,} parameters"
        if self.tuning.lora.rank:
            thin = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            size += f", of them {thin:,} learned (LoRA of rank {self.tuning.lora.rank})"
        learned = "Only answers are learned."
        if self.tuning.preferences:
            learned = f"The better one of two answers is to become likelier (DPO, beta {self.tuning.beta:g})."
        replay = f"; {self.tuning.replay:.1%} of the rows are the base's own text" if self.tuning.replay else ""
        say(
            f"Tuning {_seen_from_here(self.tuning.origin)}: {size}. {counted(steps, 'step')} of "
            f"{counted(train.batch_size, 'row')} ({steps / batches:.1f} epochs){replay}; "
            f"{showing.rates(self.settings.optim)}, {self.settings.schedule.name}, "
            f"{train.precision} on {device}. {learned}{showing.compiling(train)}",
            style="dim",
        )

    def references(self, measure: Callable[[], float] | None) -> Mapping[str, float]:
        """What the base would reach on the same answers."""
        path = self.folder / "before.json"
        if measure is not None:
            before = {BEFORE: measure()}
            if self.world.is_main:
                write_json(path, before)
            return before
        return self.world.from_main(lambda: read_json(path) if path.exists() else {})

    def validation(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Every answer of the validation part, once."""
        return conversation_batches(self.validating, batch_size)

    def sample(self, model: GPT2, step: int) -> dict[str, Any] | None:
        """An answer to the sample prompt, or to the first question of the validation part."""
        train, tokenizer, roles = self.settings.train, self.prepared.tokenizer, self.validating.roles
        if not train.sample_tokens:
            return None
        if train.sample_prompt:
            ids = RoleFormat().prompt(tokenizer, train.sample_prompt, first=True)
        else:
            ids = self.validating.ids(0).tolist()
            ids = ids[: ids.index(roles.assistant) + 1]
        engine = Engine(merged(model), tokenizer)
        sampling = Sampling(temperature=0.5, top_k=50, seed=derive_seed(train.seed, "sample") % 2**31)
        text = tokenizer.decode(list(engine.generate(ids, train.sample_tokens, sampling, roles.all)))
        said = (list(part) for end, part in groupby(ids, roles.end.__eq__) if not end)
        prompt = "\n".join(map(tokenizer.decode, said)).strip()  # a message, a line
        shown = [" ".join(printable(part).split()) for part in (prompt, text)]
        say(f"step {step}: {shown[0][:100]} → {shown[1][:160]}", style="dim italic")
        return {"step": step, "prompt": prompt, "text": text}

    def conclude(self, model: GPT2, outcome: str, references: Mapping[str, float], step: int, started: float) -> None:
        """The answers' loss before and after, what became of the base's text, and what to do next."""
        best_folder = checkpoint.pointed(self.folder, "best")
        best = checkpoint.validation_loss(best_folder) if best_folder else math.inf
        best_step = checkpoint.step_of(best_folder) or 0 if best_folder else 0
        records = read_metrics(self.folder / "metrics.jsonl")
        if self.tuning.preferences:
            rows = [("validation loss, nats a pair", f"{best:.4f}")]
        else:
            rows = [("answers' validation loss, nats a token", f"{best:.4f}")]
        rows += [(f"  {name}", f"{loss:.4f}") for name, loss in references.items()]
        if self.tuning.preferences and best_folder is not None:
            rows += [("pairs in the right order, more than before", f"{self._rightly_ordered(best_folder):.1%}")]
        elif not self.tuning.preferences:
            rows += [("perplexity", f"{math.exp(min(best, 700)):.2f}")]
        if self.tuning.text and best_folder is not None:
            losses = [self._text_loss(load_model(folder)) for folder in (self._base_folder, best_folder)]
            rows += [("loss on the base's text, before and after", f"{losses[0]:.3f}, {losses[1]:.3f}")]
        rows += [
            ("at step", f"{best_step:,} of {step:,}"),
            *showing.speed(self.settings, model.config, records, started),
        ]
        table(f"Run {self.folder.name}, {outcome}", rows, ("best checkpoint", ""))
        say(f"Curves: {self.folder}/loss.png   Weights: {self.folder}/best (a Hugging Face folder)")
        say(f"Next: gpt2 chat {self.folder}", style="bold")

    @torch.no_grad()
    def _rightly_ordered(self, folder: Path) -> float:
        """The share of the validation part's pairs that a checkpoint prefers rightly, more than the base did."""
        objective = self.objective(load_model(folder))
        assert isinstance(objective, PreferenceLoss)
        margins = [objective.margins(inputs, targets) for inputs, targets, _ in self.validation(8)]
        return (torch.cat(margins) > 0).float().mean().item()

    def _text_loss(self, model: GPT2) -> float:
        """Mean loss over some of the text that the base validated on."""
        assert self.tuning.text is not None
        shards = TokenShards(Path(self.tuning.text), "validation")
        context = min(model.config.context_length, len(shards) - 1)
        batches = evaluation_windows(shards, context, 8, TEXT_TOKENS)
        return mean_loss(NextTokenLoss(model), batches, lambda: autocast("fp32", torch.device("cpu")))


_COLUMNS = ("", "training", "validation")


def _counted(part: ConversationRows | PreferenceRows) -> dict[str, str]:
    """What is in a part, for the table."""
    rows = part.answers if isinstance(part, PreferenceRows) else part
    answers = sum(int((answer_targets(rows.ids(index), rows.roles) != IGNORED).sum()) for index in range(len(rows)))
    return {
        "pairs" if isinstance(part, PreferenceRows) else "conversations": f"{len(part):,}",
        "tokens": f"{int(rows.lengths.sum()) + len(rows):,}",
        "of them answers": f"{answers:,}",
        "positions of the longest": f"{int(rows.lengths.max()):,}",  # its last token is a target only
    }


def _seen_from_here(path: str) -> str:
    """A path as it is named in this folder, where it is inside."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
