"""One run from its first step to its last: build the parts, join them, train, show, save, and say how it ended."""

import functools
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from gpt2.config.schema import Settings
from gpt2.console import say, table, warn
from gpt2.corpus.doctor import Report, examine
from gpt2.corpus.prepare import Prepared
from gpt2.corpus.shards import TokenShards
from gpt2.data.dataset import GPTDataset, evaluation_windows
from gpt2.data.loader import Loader
from gpt2.evaluation.baselines import COUNTED_TOKENS, Baselines, baselines
from gpt2.evaluation.loss import bits_per_byte, mean_loss
from gpt2.files import read_json, sweep_temporaries, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.sampling import make_sampler
from gpt2.generation.stream import printable
from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.optim.adamw import build_adamw
from gpt2.optim.schedule import build_schedule
from gpt2.recipes.data import show
from gpt2.runtime import autocast, derive_seed, keep_freed_memory, pick_device
from gpt2.training import checkpoint
from gpt2.training.display import Display
from gpt2.training.fit import Outcome, Progress, Rhythm, fit
from gpt2.training.interrupt import StopRequest
from gpt2.training.loss import cross_entropy
from gpt2.training.metrics import MetricsFile, Record, cut_back, read_metrics
from gpt2.training.plots import plot_run
from gpt2.training.trainer import Plan, Trainer, optimizer_tensors, restore_optimizer
from gpt2.weights.huggingface import export_tensors, hf_config, hf_generation_config, load_model


@dataclass(frozen=True, slots=True)
class Job:
    """A run that is ready to go: its folder is locked, its data prepared, its settings complete."""

    folder: Path
    settings: Settings
    prepared: Prepared
    record: dict[str, Any]
    """run.json: with the sources' bytes it repeats the run."""
    resumed: Path | None
    """The verified checkpoint to go on from."""
    started: float


def run(job: Job) -> None:
    """Build the parts, join them, train, and say how it ended."""
    keep_freed_memory()
    settings, prepared, folder = job.settings, job.prepared, job.folder
    train_settings, device = settings.train, pick_device(settings.train.device)
    assert train_settings.steps and train_settings.micro_batch_size and train_settings.eval_every
    checkpoint_folder = folder / "checkpoints"
    if checkpoint_folder.exists():
        sweep_temporaries(checkpoint_folder)

    model = _build_model(job).to(device)
    optimizer = build_adamw(model.named_parameters(), settings.optim)
    loader = build_loader(settings, prepared)
    precision = functools.partial(autocast, train_settings.precision, device)
    forward = torch.compile(model) if train_settings.compile else model
    trainer = Trainer(
        model=model,
        forward=forward,
        optimizer=optimizer,
        schedule=build_schedule(settings.schedule, train_settings.steps),
        loader=loader,
        loss=cross_entropy,
        plan=Plan(
            steps=train_settings.steps,
            micro_batch_size=train_settings.micro_batch_size,
            grad_clip=train_settings.grad_clip,
            step_seed=lambda step: derive_seed(train_settings.seed, "dropout", step),
            autocast=precision,
        ),
        started=job.started,
    )
    progress = Progress()
    if job.resumed is not None:
        state = read_json(job.resumed / "training_state.json")
        trainer.restore(state["trainer"])
        progress = Progress.from_json(state["progress"])
        restore_optimizer(model, optimizer, load_file(job.resumed / "training_state.safetensors"))

    report = _report(settings, prepared, loader)
    if job.resumed is None:
        write_json(folder / "report.json", report.to_json())
        show(report)
    validation = TokenShards(prepared.folder, "validation")
    lines = _reference_lines(prepared, validation)
    _announce(settings, report, device, validation)

    def validate() -> float:
        size = max(1, 2 * (train_settings.micro_batch_size or 1))
        batches = evaluation_windows(validation, model.config.context_length, size, train_settings.eval_tokens)
        return mean_loss(model, forward, batches, cross_entropy, precision)

    def save(best: bool) -> bool:
        return _save(job, trainer, progress, best)

    def look(entry: Record) -> None:
        _sample(job, model, entry.step)
        _plot(job, lines)

    metrics = MetricsFile(folder / "metrics.jsonl", keep_to_step=trainer.step)
    cut_back(folder / "samples.jsonl", trainer.step)
    rhythm = Rhythm(train_settings.steps, train_settings.eval_every, train_settings.save_every, train_settings.patience)
    _state(folder, "running", trainer.step)
    outcome: Outcome | Literal["failed"] = "failed"
    try:
        last = progress.validations[-1][2] if progress.validations else None
        with StopRequest() as stop, Display(train_settings.steps, trainer.step, last) as display:
            outcome = fit(trainer, rhythm, progress, [metrics, display], validate, look, save, warn, stop)
    finally:
        metrics.close()
        _state(folder, outcome, trainer.step)
    _plot(job, lines)
    if stop.received is not None and outcome == "interrupted":
        say(f"Stopped at step {trainer.step:,} and saved. Go on with: gpt2 train --resume {folder}", style="bold")
        raise SystemExit(128 + stop.received)
    _conclude(job, outcome, progress, lines, trainer.step)


def _build_model(job: Job) -> GPT2:
    """The model of a run: with the checkpoint's weights, or new ones fixed by the seed."""
    model_settings = job.settings.model
    if job.resumed is not None:
        return load_model(job.resumed, dropout=model_settings.dropout)
    model = GPT2(_model_config(job.settings, job.prepared))
    model.init_weights(torch.Generator().manual_seed(derive_seed(job.settings.train.seed, "weights")))
    return model


def _model_config(settings: Settings, prepared: Prepared) -> GPT2Config:
    sizes = settings.model
    assert sizes.context_length and sizes.n_layer and sizes.n_head and sizes.n_embd, "resolve the model first"
    return GPT2Config(
        vocab_size=prepared.stats.vocab_size,
        context_length=sizes.context_length,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
        n_embd=sizes.n_embd,
        dropout=sizes.dropout,
    )


def build_loader(settings: Settings, prepared: Prepared) -> Loader:
    """The batches of a run's training part."""
    assert settings.model.context_length
    return Loader(
        TokenShards(prepared.folder, "train"),
        context_length=settings.model.context_length,
        stride=settings.data.stride,
        batch_size=settings.train.batch_size,
        seed=derive_seed(settings.train.seed, "order"),
    )


def _report(settings: Settings, prepared: Prepared, loader: Loader) -> Report:
    assert settings.train.steps and settings.model.context_length
    config = _model_config(settings, prepared)
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


def _announce(settings: Settings, report: Report, device: torch.device, validation: TokenShards) -> None:
    """One paragraph: what is about to be trained, on what, for how long."""
    sizes, train_settings = settings.model, settings.train
    say(
        f"Model: GPT-2 with {sizes.n_layer} layers, {sizes.n_head} heads, width {sizes.n_embd}, context "
        f"{sizes.context_length}: {report.parameters:,} parameters. Training: {train_settings.steps:,} steps of "
        f"{train_settings.batch_size} × {sizes.context_length} tokens ({report.epochs:.1f} epochs), "
        f"{settings.optim.name} at {settings.optim.lr:g}, {settings.schedule.name}, "
        f"{train_settings.precision} on {device}.",
        style="dim",
    )
    if len(validation) > train_settings.eval_tokens:
        say(
            f"Each validation reads {train_settings.eval_tokens:,} of {len(validation):,} tokens, evenly spread "
            "(--train.eval-tokens).",
            style="dim",
        )


def _reference_lines(prepared: Prepared, validation: TokenShards) -> Baselines:
    """Uniform, unigram and bigram loss of this validation text, counted once and kept beside the shards."""
    path = prepared.folder / "baselines.json"
    if path.exists():
        return Baselines(**read_json(path))
    train = TokenShards(prepared.folder, "train")
    lines = baselines(
        train.read(0, min(len(train), COUNTED_TOKENS)),
        validation.read(0, min(len(validation), COUNTED_TOKENS)),
        prepared.stats.vocab_size,
    )
    write_json(path, lines._asdict())
    return lines


def _save(job: Job, trainer: Trainer, progress: Progress, best: bool) -> bool:
    """Write a checkpoint; whether that succeeded.

    A disk that refuses stops no training before its end: the older checkpoints are whole.
    """
    settings = job.settings
    assert settings.train.steps
    model = trainer.model
    assert isinstance(model, GPT2)

    def write(folder: Path) -> None:
        end_of_text = job.prepared.tokenizer.end_of_text
        checkpoint.write_tensors(folder / "model.safetensors", export_tensors(model.state_dict()))
        checkpoint.write_tensors(folder / "training_state.safetensors", optimizer_tensors(model, trainer.optimizer))
        state = {"format": 1, "trainer": trainer.state(), "progress": progress.to_json()}
        files = {
            "config.json": hf_config(model.config, end_of_text),
            "generation_config.json": hf_generation_config(end_of_text),
            "training_state.json": state,
            "run.json": job.record,
            **job.prepared.tokenizer.to_files(model.config.context_length),
        }
        for name, value in files.items():
            (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    expected = 12 * sum(parameter.numel() for parameter in model.parameters()) + 2**20
    try:
        checkpoint.save(job.folder, trainer.step, write, expected, best, settings.train.keep)
    except OSError as error:
        if trainer.step >= settings.train.steps:
            raise
        warn(
            f"The checkpoint of step {trainer.step} could not be saved: {error.strerror or error}. Training goes on; "
            "earlier checkpoints are intact. Free some disk space before the next one."
        )
        return False
    return True


def _sample(job: Job, model: GPT2, step: int) -> None:
    """Let the model speak: into samples.jsonl and onto the screen."""
    settings = job.settings.train
    if not settings.sample_tokens:
        return
    engine = Engine(model, job.prepared.tokenizer)
    sampler = make_sampler(temperature=0.8, top_k=50, top_p=1.0, seed=derive_seed(settings.seed, "sample") % 2**31)
    text = engine.complete(settings.sample_prompt, max_tokens=settings.sample_tokens, sampler=sampler)
    with (job.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        entry = {"step": step, "prompt": settings.sample_prompt, "text": text}
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    shown = re.sub(r"\s+", " ", printable(settings.sample_prompt + text)).strip()
    say(f"step {step}: {shown[:160]}{'…' if len(shown) > 160 else ''}", style="dim italic")


def _plot(job: Job, lines: Baselines) -> None:
    """Redraw the curves. A picture that cannot be written is no reason to stop."""
    sizes = job.settings.model
    title = f"{job.folder.name}: GPT-2, {sizes.n_layer} layers, width {sizes.n_embd}, {job.prepared.stats.tokenizer}"
    try:
        plot_run(job.folder, title, lines._asdict())
    except OSError as error:
        warn(f"loss.png could not be drawn: {error.strerror or error}.")


def _state(folder: Path, status: str, step: int) -> None:
    """run_state.json: how the run stands, for whoever watches it."""
    write_json(folder / "run_state.json", {"status": status, "step": step})


def _conclude(job: Job, outcome: str, progress: Progress, lines: Baselines, step: int) -> None:
    """How it ended, what it means, what to do next."""
    folder, stats = job.folder, job.prepared.stats
    records = read_metrics(folder / "metrics.jsonl")
    best = progress.best_loss
    rows = [
        ("validation loss, nats a token", f"{best:.4f}"),
        ("perplexity", f"{math.exp(min(best, 700)):.2f}"),
        ("bits a byte", f"{bits_per_byte(best, stats.validation.tokens, stats.validation.text_bytes):.3f}"),
        ("bigram, unigram, uniform loss", f"{lines.bigram:.3f}, {lines.unigram:.3f}, {lines.uniform:.3f}"),
        ("at step", f"{progress.best_step:,} of {step:,}"),
        ("time", f"{records[-1].seconds:,.0f} s"),
    ]
    table(f"Run {folder.name}, {outcome}", rows, ("best checkpoint", ""))
    if best >= lines.bigram:
        warn(
            "The model predicts this text no better than counted pairs of tokens do (the bigram line). Train longer, "
            "or give it more text."
        )
    say(f"Curves: {folder}/loss.png   Weights: {folder}/best (a Hugging Face folder)   Samples: {folder}/samples.jsonl")
    say(f'Next: gpt2 chat {folder}   ·   gpt2 generate {folder} "…"', style="bold")
