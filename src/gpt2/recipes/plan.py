"""Plan: what a training run would take, in tables or JSON. Nothing is trained, and torch is not loaded."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator

from gpt2.config.commands import PlanSettings
from gpt2.config.gpus import GPUS, PRICES_OF, default_mfu, mfu_is_checked, parse_gpus
from gpt2.config.presets import PRESETS
from gpt2.console import counted, say, table, warn
from gpt2.errors import ConfigError
from gpt2.model.cost import flops_per_token, parameters
from gpt2.model.plan import (
    DISK,
    GIB,
    HOURS_BETWEEN_FAILURES,
    USABLE,
    Fit,
    Saving,
    Schedule,
    Shape,
    fewest_gpus,
    fit,
    saving,
    schedule,
    sequences_needed,
    verdict,
)

VOCABULARY = 50_257
"""Ids of GPT-2's own tokenizer, which a model of this size is trained with."""


def plan(settings: PlanSettings) -> None:
    """Reckon a run and show it: tables and what they assume on stderr, or JSON on stdout.

    A model that does not fit is an answer, not an error: it is shown with a warning that says what would fit.

    Raises:
        ConfigError: so few tokens are no step.
    """
    if settings.tokens < settings.batch_tokens:
        raise ConfigError(
            f"--tokens {settings.tokens:,} is less than a single step takes: {settings.batch_tokens:,}.",
            f"Did you mean --tokens {settings.tokens}B?"
            if settings.tokens < 10_000
            else "Choose a smaller --batch-tokens.",
        )
    gpus, name = parse_gpus(settings.gpus)
    gpu, preset = GPUS[name], PRESETS[settings.model]
    sizes = Shape(VOCABULARY, settings.context_length or preset.context_length, preset.n_layer, preset.n_embd)
    size = parameters(sizes)
    needed = sequences_needed(settings.batch_tokens, gpus, sizes.context_length, settings.micro_batch_size)
    gpu_bytes = (settings.gpu_memory_gb or gpu.memory) * GIB
    fitted = fit(sizes, gpus, gpu_bytes, needed, settings.micro_batch_size)
    mfu = settings.mfu or default_mfu(gpu, size, gpus, fitted.layout.recompute)
    price = gpu.dollars if settings.dollars_per_gpu_hour is None else settings.dollars_per_gpu_hour
    run = schedule(sizes, fitted, settings.tokens, needed, gpu.peak, mfu, price) if fitted.fits else None
    kept = saving(size, gpus, settings.save_seconds, math.inf if run is None else run.hours)
    if settings.as_json:
        sys.stdout.write(json.dumps(_as_json(settings, sizes, fitted, run, kept), indent=2) + "\n")
    else:
        _show(settings, sizes, gpu_bytes, fitted, run, kept)
    if run is None:
        warn(f"It does not fit. {' '.join(_remedies(settings, sizes, gpu_bytes, fitted))}")
    elif abs(run.batch_tokens / settings.batch_tokens - 1) > 0.01:
        warn(
            f"A step takes {run.batch_tokens:,} tokens, not {settings.batch_tokens:,}: whole micro-batches of "
            f"{fitted.micro_batch} × {sizes.context_length:,} tokens on each of {counted(gpus, 'GPU')}."
        )
    if run is not None and fitted.layout.recompute:
        warn("`gpt2 train` does not compute activations twice: this layout is one for other programs.")
    if not gpu.bf16:
        warn(
            f"{name} computes no bf16. The time is that of fp16, which `gpt2 train` does not offer; in fp32 it is "
            "about eight times as long."
        )


def _show(
    settings: PlanSettings, sizes: Shape, gpu_bytes: float, fitted: Fit, run: Schedule | None, kept: Saving
) -> None:
    size = parameters(sizes)
    model = [
        ("parameters", f"{size:,}"),
        ("context, tokens", f"{sizes.context_length:,}"),
        ("training tokens", f"{settings.tokens:,}"),
        ("tokens a parameter", f"{settings.tokens / size:.3g}"),
    ]
    table(f"Plan: {settings.model} on {settings.gpus}", model, ("", "model"))
    say(f"{settings.tokens / size:.3g} tokens a parameter: {verdict(settings.tokens, sizes)}.", style="dim")

    held = fitted.memory._asdict() | {"total": fitted.memory.total}
    rows = [(what.replace("_", " "), f"{value / GIB:.2f}") for what, value in held.items()]
    rows += [(f"usable of {gpu_bytes / GIB:.1f}", f"{fitted.usable / GIB:.2f}")]
    table("Memory of one GPU", rows, ("", "GiB"))
    say(f"{'Fits' if fitted.fits else 'Does not fit'}: {_why(fitted)}", style="dim")

    if run is not None:
        rows = [
            ("sequences on a GPU at once", f"{fitted.micro_batch:,}"),
            ("micro-batches of a step", f"{run.accumulation:,}"),
            ("tokens of a step", f"{run.batch_tokens:,}"),
            ("steps", f"{run.steps:,}"),
            ("seconds of a step", f"{run.seconds_per_step:.3g}"),
            ("tokens a second and GPU", f"{run.tokens_per_second_per_gpu:,.0f}"),
            ("tokens a second", f"{run.tokens_per_second:,.0f}"),
            ("time", _duration(run.hours)),
            ("GPU-hours", f"{run.gpu_hours:,.1f}"),
            ("dollars", f"{run.dollars:,.0f}"),
        ]
        table("The run", rows, ("", "all GPUs" if settings.gpus[:2] != "1x" else "the GPU"))
        rows = [
            ("size of a checkpoint", f"{kept.checkpoint_bytes / 1e9:.2f} GB"),
            ("seconds to save it", f"{kept.save_seconds:.3g}"),
            ("time between failures", _duration(kept.hours_between_failures)),
            ("failures to expect", f"{run.hours / kept.hours_between_failures:.2g}"),
            ("save every", _duration(kept.interval_hours)),
            ("save every, steps", f"{_save_steps(run, kept):,}"),
            ("time lost to saving and failures", f"{kept.overhead:.2%}"),
        ]
        table("Checkpoints", rows, ("", "each"))
        if kept.interval_hours >= run.hours:
            say("The run is shorter than the time after which saving pays: one checkpoint, at its end.", style="dim")
        for sentence in _assumptions(settings, sizes, run, kept):
            say(sentence, style="dim")


def _save_steps(run: Schedule, kept: Saving) -> int:
    return min(run.steps, max(1, round(kept.interval_hours * 3600 / run.seconds_per_step)))


def _duration(hours: float) -> str:
    """Hours in the unit that a person would use."""
    for limit, unit, each in ((1.0, "minutes", 1 / 60), (48.0, "hours", 1.0), (24 * 730.0, "days", 24.0)):
        if hours < limit:
            return f"{hours / each:.1f} {unit}"
    return f"{hours / 8766:.1f} years"


def _why(fitted: Fit) -> str:
    """The layout, and what spoke against the simpler ones."""
    against = ", ".join(f"{name} {need / GIB:.1f}" for name, need in fitted.rejected)
    usable = f"{fitted.usable / GIB:.1f} GiB"
    if not fitted.fits:
        return f"with sequences at once: {fitted.micro_batch}, and {usable} usable, it would need: {against}."
    chosen = f"{fitted.layout.name}, sequences at once: {fitted.room:,} at most"
    return f"{chosen}. Needed, of {usable} usable: {against}." if against else f"{chosen}. It is the simplest layout."


def _remedies(settings: PlanSettings, sizes: Shape, gpu_bytes: float, fitted: Fit) -> Iterator[str]:
    """What would fit, each tried."""
    gpus, name = parse_gpus(settings.gpus)

    def would(count: int, memory: float, context_length: int) -> bool:
        shape = dataclasses.replace(sizes, context_length=context_length)
        chosen = settings.micro_batch_size
        needed = sequences_needed(settings.batch_tokens, count, context_length, chosen)
        return fit(shape, count, memory, needed, chosen).fits

    length = sizes.context_length
    count = fewest_gpus(lambda count: count > gpus and would(count, gpu_bytes, length))
    others = [other for other, gpu in GPUS.items() if other != name and would(gpus, gpu.memory * GIB, length)]
    shorter = next((n for n in (length >> k for k in range(1, 20)) if n >= 128 and would(gpus, gpu_bytes, n)), None)
    if fitted.room:
        yield f"--micro-batch-size {fitted.room} would."
    if count:
        yield f"--gpus {count}x{name} would."
    if others:
        yield f"So would {gpus:,} of: {', '.join(others)}."
    if shorter:
        yield f"--context-length {shorter} would."
    if not (fitted.room or count or others or shorter):
        yield "Take a smaller model."


def _assumptions(settings: PlanSettings, sizes: Shape, run: Schedule, kept: Saving) -> Iterator[str]:
    """What the numbers rest on, a sentence each."""
    _, name = parse_gpus(settings.gpus)
    peak = f"{GPUS[name].peak / 1e12:g} TFLOP/s"
    if settings.mfu:
        yield f"Time: {run.mfu:.1%} of {peak}, as given."
    else:
        known = mfu_is_checked(name, parameters(sizes))
        checked = "as published runs reach" if known else "a guess, compared with no published run"
        yield f"Time: {run.mfu:.1%} of {peak} assumed for compiled bf16 with FlashAttention, {checked}; --mfu sets it."
    if settings.dollars_per_gpu_hour is None:
        yield (
            f"Dollars: {GPUS[name].dollars:.2f} for an hour of a GPU assumed, typical on demand in {PRICES_OF}; "
            "--dollars-per-gpu-hour sets it."
        )
    yield (
        f"Memory: AdamW in fp32, 16 bytes a parameter; 34 a number of width, token and block; the loss in chunks; "
        f"{1 - USABLE:.0%} of the GPU left free."
    )
    at = "as given" if settings.save_seconds else f"12 bytes a parameter at {DISK / 1e9:g} GB/s assumed"
    yield (
        f"Checkpoints: {kept.save_seconds:.3g} s, {at}; a GPU fails every {HOURS_BETWEEN_FAILURES:,} hours, "
        "as in the training of Llama 3."
    )


def _as_json(
    settings: PlanSettings, sizes: Shape, fitted: Fit, run: Schedule | None, kept: Saving
) -> dict[str, object]:
    """The plan with every number as it is, units in the names."""
    gpus, name = parse_gpus(settings.gpus)
    return {
        "model": settings.model,
        "parameters": parameters(sizes),
        "context_length": sizes.context_length,
        "flops_per_token": flops_per_token(sizes),
        "tokens": settings.tokens,
        "tokens_per_parameter": settings.tokens / parameters(sizes),
        "gpus": gpus,
        "gpu": name,
        "fits": fitted.fits,
        "layout": fitted.layout.name,
        "micro_batch_size": fitted.micro_batch,
        "largest_micro_batch_size": fitted.room,
        "memory_bytes": fitted.memory._asdict() | {"total": fitted.memory.total, "usable": fitted.usable},
        "run": run._asdict() if run else None,
        "checkpoints": kept._asdict() | ({"interval_steps": _save_steps(run, kept)} if run else {}),
    }
