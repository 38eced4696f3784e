"""`gpt2 generate`: continue a text, several times if wished, or every prompt of a file."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpt2.config.commands import LARGEST_SEED, GenerateSettings
from gpt2.console import counted, say, warn
from gpt2.errors import ConfigError
from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.request import Request, Sampling
from gpt2.generation.stream import printable, write
from gpt2.model.precision import precision_of
from gpt2.recipes.prompts import answer_file
from gpt2.runtime import pick_device
from gpt2.tokenizer.base import cannot_spell, well_formed
from gpt2.training.checkpoint import open_checkpoint, weights_sha256

NOT_OF_ANSWERS = {"run", "checkpoint", "prompt", "prompts_file", "out", "at_once", "device"}
"""Options that answers do not depend on, or that say where the model is, which is known by its weights."""


def generate(settings: GenerateSettings) -> None:
    """Print the prompt and what the model makes of it on stdout, as it is written; the speed on stderr.

    Raises:
        UserError: no such run, checkpoint, device or file.
    """
    if (settings.prompts_file is None) != (settings.out is None) or (settings.prompts_file and settings.prompt):
        raise ConfigError(
            "--prompts-file and --out belong together, and leave no place for a prompt on the command line.",
            "Example: gpt2 generate RUN --prompts-file prompts.txt --out answers.jsonl",
        )
    device = pick_device(settings.device)
    folder = open_checkpoint(settings.run, settings.checkpoint).folder
    slots = settings.at_once if settings.prompts_file else min(settings.n, settings.at_once)
    engine = open_engine(folder, device, settings.precision, slots)
    if settings.prompts_file is not None and settings.out is not None:

        def asked(prompt: str) -> list[Request]:
            return _requests(engine, prompt, settings)

        options = settings.model_dump(mode="json", exclude=NOT_OF_ANSWERS)
        options["precision"] = precision_of(engine.model)  # auto is another one on another machine
        model = {"folder": str(folder), "sha256": weights_sha256(folder)}
        answer_file(engine, Path(settings.prompts_file), Path(settings.out), asked, options, model)
        return

    prompt = well_formed(settings.prompt)
    if lost := cannot_spell(engine.tokenizer, prompt):
        warn(lost)
    requests = _requests(engine, prompt, settings)
    if cut := engine.too_long(requests[0].prompt_ids):
        warn(cut)
    # A terminal obeys control characters; a file or a pipe gets the text as it is.
    shown = printable if sys.stdout.isatty() else str
    began = time.perf_counter()
    tokens = _print_one(engine, prompt, requests[0], shown) if settings.n == 1 else 0
    if settings.n > 1:
        tokens = _print_several(engine, prompt, requests, shown)
    seconds = time.perf_counter() - began
    speed, count = tokens / max(seconds, 1e-9), counted(tokens, "token")
    say(f"{count} in {seconds:.{1 if seconds >= 0.1 else 3}f} s: {speed:.0f} tokens/s on {device}", style="dim")


def _requests(engine: Engine, prompt: str, settings: GenerateSettings) -> list[Request]:
    """The prompt as many times as answers are wished, each with a seed of its own."""
    ids = tuple(engine.tokenizer.encode(well_formed(prompt)).tolist())
    return [
        Request(
            ids,
            settings.max_tokens,
            Sampling(
                settings.temperature,
                settings.top_k,
                settings.top_p,
                settings.min_p,
                settings.repetition_penalty,
                settings.frequency_penalty,
                settings.presence_penalty,
                seed=None if settings.seed is None else (settings.seed + number) % (LARGEST_SEED + 1),
            ),
            settings.stop,
        )
        for number in range(settings.n)
    ]


def _print_one(engine: Engine, prompt: str, request: Request, shown: Callable[[str], str]) -> int:
    """Print an answer as it is written: number of tokens."""
    tokens = 0
    write(shown(prompt), sys.stdout)
    try:
        for _, delta in engine.run([request]):
            write(shown(delta.text), sys.stdout)
            tokens += len(delta.tokens)
    finally:  # what is said of an interruption or an error has a line of its own
        write("\n", sys.stdout)
    return tokens


def _print_several(engine: Engine, prompt: str, requests: list[Request], shown: Callable[[str], str]) -> int:
    """Print answers one after the other, each when those before it are complete: number of tokens."""
    tokens, printed = 0, 0
    answers = [""] * len(requests)
    complete: set[int] = set()
    for number, delta in engine.run(requests):
        answers[number] += delta.text
        tokens += len(delta.tokens)
        if delta.finish:
            complete.add(number)
        while printed in complete:
            say(f"{printed + 1} of {len(requests)}:", style="dim")
            write(shown(prompt + answers[printed]) + "\n", sys.stdout)
            printed += 1
    return tokens
