"""What a run shows of itself: the words at its beginning, samples and curves on the way, the table at its end."""

import math
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gpt2.config.gpus import find_gpu
from gpt2.config.schema import OptimSettings, Settings, TrainSettings
from gpt2.console import counted, say, table, warn
from gpt2.corpus.doctor import Report
from gpt2.corpus.prepare import Prepared
from gpt2.corpus.shards import TokenShards
from gpt2.distributed import World
from gpt2.evaluation.baselines import COUNTED_TOKENS, Baselines, baselines, kept
from gpt2.evaluation.loss import bits_per_byte
from gpt2.files import read_json, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Sampling
from gpt2.generation.stream import printable
from gpt2.model.cost import flops_per_token
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.runtime import derive_seed
from gpt2.signals import Signalled
from gpt2.training import checkpoint
from gpt2.training.metrics import Record, elapsed, read_metrics
from gpt2.training.plots import plot_run


def announce(settings: Settings, report: Report, device: torch.device, world: World, validation: TokenShards) -> None:
    """One paragraph: what is about to be trained, on what, for how long."""
    sizes, train = settings.model, settings.train
    assert sizes.n_layer and sizes.n_head and train.steps, "resolve the training first"
    where = (
        f"{device}" if world.size == 1 else f"{world.size} processes ({settings.distributed.strategy}), {device.type}"
    )
    say(
        f"Model: GPT-2 with {counted(sizes.n_layer, 'layer')}, {counted(sizes.n_head, 'head')}, width {sizes.n_embd}, "
        f"context {sizes.context_length}: {report.parameters:,} parameters. Training: "
        f"{counted(train.steps, 'step')} of {train.batch_size} × {sizes.context_length} tokens "
        f"({report.epochs:.1f} epochs), {rates(settings.optim)}, {settings.schedule.name}, dropout "
        f"{sizes.dropout:g}, weight decay {settings.optim.weight_decay:g}, {train.precision} on {where}."
        f"{compiling(train)}",
        style="dim",
    )
    if len(validation) > train.eval_tokens:
        say(
            f"Each validation reads {train.eval_tokens:,} of {len(validation):,} tokens, evenly spread "
            "(--train.eval-tokens).",
            style="dim",
        )


def compiling(train: TrainSettings) -> str:
    """The sentence about the wait before the first step, where there is one."""
    return " It is compiled first, which takes about a minute." * bool(train.compile)


def rates(optim: OptimSettings) -> str:
    """The optimizer and its peak rates, in words."""
    return (
        f"muon at {optim.matrix_lr:g} and AdamW at {optim.lr:g}" if optim.name == "muon" else f"adamw at {optim.lr:g}"
    )


def reference_lines(prepared: Prepared, validation: TokenShards) -> Baselines:
    """Uniform, unigram and bigram loss of this validation text, counted once and kept beside the shards."""
    path = prepared.folder / "baselines.json"
    if (lines := kept(path)) is not None:
        return lines
    train = TokenShards(prepared.folder, "train")
    lines = baselines(
        train.read(0, min(len(train), COUNTED_TOKENS)),
        validation.read(0, min(len(validation), COUNTED_TOKENS)),
        prepared.stats.vocab_size,
    )
    write_json(path, lines._asdict())
    return lines


def sample(settings: Settings, prepared: Prepared, model: GPT2, step: int) -> dict[str, Any] | None:
    """Let the model speak, onto the screen: → the line for samples.jsonl, if there is one."""
    train = settings.train
    if not train.sample_tokens:
        return None
    engine = Engine(model, prepared.tokenizer)
    sampling = Sampling(temperature=0.8, top_k=50, seed=derive_seed(train.seed, "sample") % 2**31)
    text = engine.complete(train.sample_prompt, train.sample_tokens, sampling)
    shown = re.sub(r"\s+", " ", printable(train.sample_prompt + text)).strip()
    say(f"step {step}: {shown[:160]}{'…' if len(shown) > 160 else ''}", style="dim italic")
    return {"step": step, "prompt": train.sample_prompt, "text": text}


class Curves:
    """The pictures of a run, drawn anew at validations; on a few pages, where these come faster than half a second
    allows, some of them are passed over: a fifth of the time at most goes into drawing.

    Args:
        folder: of the run.
        settings: of the run.
        prepared: its text.
        lines: name → loss of reference lines, nats a token.
    """

    def __init__(self, folder: Path, settings: Settings, prepared: Prepared, lines: Mapping[str, float]) -> None:
        self._folder, self._lines = folder, lines
        sizes = settings.model
        layers = counted(sizes.n_layer or 0, "layer")
        self._title = f"{folder.name}: GPT-2, {layers}, width {sizes.n_embd}, {prepared.stats.tokenizer}"
        self._not_before = -math.inf
        self.outdated = False
        """Whether a validation was passed over since they were drawn."""

    def redraw(self) -> None:
        """Draw, unless that was done a moment ago."""
        self.outdated = time.monotonic() < self._not_before
        if not self.outdated:
            self.draw()

    def draw(self) -> None:
        """Draw what there is. A picture that cannot be written is no reason to stop."""
        began = time.monotonic()
        try:
            plot_run(read_metrics(self._folder / "metrics.jsonl"), self._folder / "loss", self._title, self._lines)
        except OSError as error:
            warn(f"loss.png could not be drawn: {error.strerror or error}.")
        self.outdated = False
        self._not_before = time.monotonic() + 4 * (time.monotonic() - began)

    def complete(self, stopped: bool) -> None:
        """Draw what is not drawn yet. In a run that was stopped, a second signal spares the picture, and no more."""
        if self.outdated or stopped:
            try:
                self.draw()
            except (KeyboardInterrupt, Signalled):
                if not stopped:
                    raise


def say_if_late(started: float, deadline: float | None) -> None:
    """A run that was given a time may have been unable to keep it: set-up and a single step have theirs."""
    took = time.monotonic() - started
    if deadline is not None and took > 1.1 * (deadline - started) + 1:
        warn(f"It took {took:,.0f} s, not the {deadline - started:,.0f} s of --train.minutes: they were too few.")


def speed(settings: Settings, config: GPT2Config, records: list[Record], started: float) -> list[tuple[str, str]]:
    """The time of the whole command, and of those that it goes on from; tokens a second of the middle step.

    On a GPU whose peak is known, also what share of it that is.
    """
    if not records:
        return []  # somebody has removed metrics.jsonl meanwhile
    before = elapsed(records)[-1] - records[-1].seconds
    speed = statistics.median(record.tokens_per_second for record in records)
    rows = [
        ("time, with set-up and validations", f"{before + time.monotonic() - started:,.0f} s"),
        ("tokens a second, median of steps", f"{speed:,.0f}"),
    ]
    gpu = find_gpu(torch.cuda.get_device_name()) if settings.train.device.startswith("cuda") else None
    if gpu is not None:
        share = speed * flops_per_token(config) / (gpu.peak * settings.distributed.processes)
        rows.append(("of the GPU's 16-bit peak (MFU)", f"{share:.1%}"))
    return rows


def conclude(
    folder: Path,
    settings: Settings,
    config: GPT2Config,
    prepared: Prepared,
    outcome: str,
    lines: Baselines,
    step: int,
    started: float,
) -> None:
    """How it ended, what it means, what to do next. The best is the best that is on disk."""
    stats = prepared.stats
    records = read_metrics(folder / "metrics.jsonl")
    best_folder = checkpoint.pointed(folder, "best")
    best = checkpoint.validation_loss(best_folder) if best_folder else math.inf
    best_step = checkpoint.step_of(best_folder) or 0 if best_folder else 0
    rows = [
        ("best validation loss, nats a token", f"{best:.4f}"),
        ("its perplexity", f"{math.exp(min(best, 700)):.2f}"),
        ("its bits a byte", f"{bits_per_byte(best, stats.validation.tokens, stats.validation.text_bytes):.3f}"),
        ("bigram, unigram, uniform loss", f"{lines.bigram:.3f}, {lines.unigram:.3f}, {lines.uniform:.3f}"),
        ("its step", f"{best_step:,} of {step:,}"),
        *speed(settings, config, records, started),
    ]
    table(f"Run {folder.name}, {outcome}", rows, ("", ""))
    known = {
        lines.uniform: "guessing does (the uniform line)",
        lines.unigram: "counted tokens do (the unigram line)",
        lines.bigram: "counted pairs of tokens do (the bigram line)",
    }
    if best >= min(known):
        beaten_by = known[max(line for line in known if best >= line)]
        more = "Train longer, or give it more text."
        if best_step < 0.8 * step:  # it has been getting worse for long
            more = f"It has got no better since step {best_step:,}: more text helps most, then a smaller model."
        warn(f"The model predicts this text no better than {beaten_by}. {more}")
    source = read_json(folder / "run.json").get("forked_from")
    if source is not None and (before := checkpoint.validation_loss(Path(source))) < best:
        warn(f"It got no better: it began with a loss of {before:.4f}, at {source}. Use that one.")
    say(f"Curves: {folder}/loss.png   Weights: {folder}/best (a Hugging Face folder)   Samples: {folder}/samples.jsonl")
    say(f'Next: gpt2 chat {folder}   ·   gpt2 generate {folder} "…"', style="bold")
