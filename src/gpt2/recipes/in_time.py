"""`--train.minutes`: the best model in that time on this machine. What nobody has set is chosen, and it is said why."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gpt2.config.presets import Shape
from gpt2.config.resolve import resolve_context
from gpt2.config.schema import Settings
from gpt2.console import counted, progress, say, table
from gpt2.corpus.doctor import characters_per_token
from gpt2.corpus.prepare import Prepared
from gpt2.corpus.shards import TokenShards
from gpt2.model import budget
from gpt2.model.budget import Choice
from gpt2.model.cost import STATE_BYTES, parameters
from gpt2.model.gpt2 import GPT2Config
from gpt2.model.scaling import LAW, Text
from gpt2.recipes.probe import Meter
from gpt2.recipes.showing import reference_lines
from gpt2.runtime import whole_memory

MEASUREMENTS_AT_MOST = 5
FIRST = Shape(3, 4, 128, 128)
"""What is measured first, to have a rate for the others."""
LOOKING_SHARE = 0.06
"""Of the time that validations may take, with their samples, curves and checkpoints."""
LOOK_SECONDS = 2.0
"""Of a validation, besides reading: its sample, curves and checkpoint."""
LOOKS_AT_MOST = 20
SECONDS_AT_STAKE = 15.0
"""A checkpoint comes after so many, or a twentieth of the run: what a machine that fails can take with it."""


def chosen_in_time(
    settings: Settings, given: Settings, prepared: Prepared, device: torch.device, processes: int, deadline: float
) -> Settings:
    """The settings with all that `given` leaves open chosen for the lowest loss at the deadline.

    Args:
        settings: with the preset's sizes filled in.
        given: as typed and as read from a file: what it sets stays as it is.
        prepared: the data.
        device: where the run will train.
        processes: that share each batch.
        deadline: when the run is to have ended, on `time.monotonic()`.
    """
    text = _text(prepared)
    shape_given = bool(given.model.model_fields_set & {"preset", "n_layer", "n_head", "n_embd"})
    sizes = settings.model
    assert sizes.n_layer and sizes.n_head and sizes.n_embd, "resolve the model first"
    own = [(sizes.n_layer, sizes.n_head, sizes.n_embd)] if shape_given else None
    batch = given.train.batch_size if "batch_size" in given.train.model_fields_set else None
    meter = Meter(device, prepared.stats.vocab_size, settings.train.precision, settings.optim)

    def choices() -> list[Choice]:
        return budget.options(
            max(1.0, (deadline - time.monotonic()) * (1 - LOOKING_SHARE) - LOOK_SECONDS),
            text,
            lambda shape, size: meter.seconds(shape, max(1, size // processes)),
            allowed=_fits(prepared.stats.vocab_size, device),
            most_context=resolve_context(1024, min(prepared.stats.train.tokens, prepared.stats.validation.tokens)),
            sizes=own,
            batch_size=batch,
            context_length=given.model.context_length,
        )

    with progress("Measuring this machine", MEASUREMENTS_AT_MOST) as advance:
        meter.measure(Shape(*own[0], FIRST.context_length) if own else FIRST, 16)
        for _ in range(MEASUREMENTS_AT_MOST - 1):
            advance(1)
            best = budget.best(choices())
            share = max(1, best.batch_size // processes)
            if meter.measured(best.shape, share):
                break
            meter.measure(best.shape, share)
    considered = choices()
    best = budget.best(considered)
    _explain(considered, best, text, prepared.stats.vocab_size, given.train.minutes or 0.0, shape_given)
    best = replace(best, batch_size=processes * math.ceil(best.batch_size / processes))  # each process gets as many
    return _applied(settings, given, best, _looks(settings, prepared, best))


def _text(prepared: Prepared) -> Text:
    stats = prepared.stats
    lines = reference_lines(prepared, TokenShards(prepared.folder, "validation"))
    return Text(stats.train.tokens, characters_per_token(stats.train), lines.bigram)


def _fits(vocab_size: int, device: torch.device) -> Callable[[Shape], bool]:
    """Whether a model and its optimizer take less than half of the memory."""
    most = whole_memory(device) / 2 / STATE_BYTES
    return lambda shape: parameters(_config(shape, vocab_size)) < most


def _config(shape: Shape, vocab_size: int) -> GPT2Config:
    return GPT2Config(vocab_size, shape.context_length, shape.n_layer, shape.n_head, shape.n_embd)


def _looks(settings: Settings, prepared: Prepared, best: Choice) -> int:
    """How often to validate in the run: as often as a small share of its time allows, and once in any case."""
    tokens = min(settings.train.eval_tokens, prepared.stats.validation.tokens)
    reading = tokens * best.seconds_a_step * best.steps / best.tokens / 3  # the forward third of a step
    seconds = best.seconds_a_step * best.steps
    return max(1, min(LOOKS_AT_MOST, int(LOOKING_SHARE * seconds / (LOOK_SECONDS + reading))))


def _applied(settings: Settings, given: Settings, best: Choice, looks: int) -> Settings:
    """The choice as settings; whatever was given stays."""
    chosen: dict[str, dict[str, Any]] = {
        "model": best.shape._asdict(),
        "train": {
            "batch_size": best.batch_size,
            "steps": best.steps,
            "eval_every": math.ceil(best.steps / looks),
            "save_every": max(math.ceil(best.steps / LOOKS_AT_MOST), int(SECONDS_AT_STAKE / best.seconds_a_step), 1),
        },
    }
    parts: dict[str, Any] = {}
    for name, values in chosen.items():
        fixed = getattr(given, name).model_fields_set
        own = getattr(settings, name)
        parts[name] = own.model_copy(update={key: value for key, value in values.items() if key not in fixed})
    return settings.model_copy(update=parts)


def _explain(
    considered: list[Choice], best: Choice, text: Text, vocab_size: int, minutes: float, shape_given: bool
) -> None:
    """A table of what was considered, and the choice in words."""
    rows = [
        (
            ("→ " if choice is best else "  ") + f"{choice.shape.n_layer} × {choice.shape.n_embd}",
            f"{parameters(_config(choice.shape, vocab_size)):,}",
            f"{choice.batch_size} × {choice.shape.context_length}",
            f"{choice.tokens / choice.steps / choice.seconds_a_step:,.0f}",
            f"{choice.steps:,}",
            f"{choice.tokens / text.tokens:.2g}",
            f"{choice.loss:.2f}",
        )
        for choice in considered
    ]
    header = ("  layers × width", "parameters", "step", "tokens/s", "steps", "epochs", "expected loss")
    table(f"In {minutes:g} minute{'s' * (minutes != 1)} on this machine", rows, header)
    why = "as you set it" if shape_given else "the lowest expected loss"
    say(
        f"Chosen: {counted(best.shape.n_layer, 'layer')} of width {best.shape.n_embd}, {why}: {best.loss:.2f} ± "
        f"{2 * LAW.noise * best.loss:.2f} nats a token (bigram line {text.bigram:.2f}).",
        style="dim",
    )
