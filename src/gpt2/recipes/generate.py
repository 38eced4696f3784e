"""`gpt2 generate`: continue a text with a trained model."""

import sys
import time
from collections.abc import Iterable, Iterator

from gpt2.config.commands import GenerateSettings
from gpt2.console import say, warn
from gpt2.generation.engine import Engine
from gpt2.generation.sampling import make_sampler
from gpt2.generation.stream import printable, text_pieces, write
from gpt2.runtime import pick_device
from gpt2.tokenizer.base import cannot_spell, well_formed
from gpt2.tokenizer.store import load_tokenizer
from gpt2.training.checkpoint import open_checkpoint
from gpt2.weights.huggingface import load_model


def generate(settings: GenerateSettings) -> None:
    """Print the prompt and what the model makes of it on stdout, as it is written; the speed on stderr.

    Raises:
        UserError: no such run, checkpoint or device.
    """
    sampler = make_sampler(settings.temperature, settings.top_k, settings.top_p, settings.seed)
    device = pick_device(settings.device)
    checkpoint = open_checkpoint(settings.run, settings.checkpoint)
    engine = Engine(load_model(checkpoint.folder, device), load_tokenizer(checkpoint.folder))

    prompt = well_formed(settings.prompt)
    if lost := cannot_spell(engine.tokenizer, prompt):
        warn(lost)
    prompt_ids = engine.tokenizer.encode(prompt).tolist()
    # A terminal obeys control characters; a file or a pipe gets the text as it is.
    shown = printable if sys.stdout.isatty() else str
    write(shown(prompt), sys.stdout)

    written: list[int] = []
    began = time.perf_counter()
    ids = _recorded(engine.generate(prompt_ids, settings.max_tokens, sampler), written)
    for piece in text_pieces(ids, engine.tokenizer):
        write(shown(piece), sys.stdout)
    seconds = time.perf_counter() - began
    write("\n", sys.stdout)
    speed, count = len(written) / max(seconds, 1e-9), f"{len(written)} token{'s' * (len(written) != 1)}"
    say(f"{count} in {seconds:.{1 if seconds >= 0.1 else 3}f} s: {speed:.0f} tokens/s on {device}", style="dim")


def _recorded(ids: Iterable[int], into: list[int]) -> Iterator[int]:
    """The same ids, each noted down as it passes."""
    for token in ids:
        into.append(token)
        yield token
