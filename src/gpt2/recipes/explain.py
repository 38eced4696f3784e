"""`gpt2 explain`: what goes on in a model at a prompt, in the terminal and as a page; or how its answer grew."""

from pathlib import Path
from typing import Any

import torch

from gpt2.chat.template import RoleFormat
from gpt2.config.commands import ExplainSettings
from gpt2.console import counted, progress, say, warn
from gpt2.errors import CheckpointError, RunError
from gpt2.files import atomic_open, disk_error, require_folder, require_own
from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.request import Sampling
from gpt2.inspection.document import html
from gpt2.inspection.view import look, origins, softmax_of, spell
from gpt2.recipes.explained import SHOWN, print_growth, print_look
from gpt2.recipes.inspector import names_of, training_text
from gpt2.runtime import pick_device
from gpt2.tokenizer.base import cannot_spell, well_formed
from gpt2.tokenizer.roles import roles_of
from gpt2.training.checkpoint import (
    find_run,
    list_checkpoints,
    open_checkpoint,
    step_of,
    validation_loss,
    verify,
)

PAGE = b"<!doctype html>\n<!-- gpt2 explain -->"
"""What its pages begin with."""
SEED = 0
"""Where none is given: the same look again gives the same answer."""


def explain(settings: ExplainSettings) -> None:
    """Let the model write on from a prompt, and show what it saw, in the terminal or in an HTML file.

    Raises:
        UserError: no such run, checkpoint, device or folder.
    """
    if settings.out is not None:
        require_folder(Path(settings.out))
        require_own(Path(settings.out), PAGE, "page of gpt2 explain")
    device = pick_device(settings.device)
    view = _over_time(settings, device) if settings.over_time else _look(settings, device)
    if view["asked"]:
        say(
            "The prompt is a message, which the model answers. With --plain: a text, which it goes on with.",
            style="dim",
        )
    if settings.out is not None:
        path = Path(settings.out).expanduser()
        try:
            with atomic_open(path, "w") as file:
                file.write(html(view))
        except OSError as error:
            raise disk_error(error, f"writing {path}") from error
        say(f"Wrote {path}: open it in a browser.")
    elif settings.over_time:
        print_growth(view)
    else:
        print_look(view)
        say("With --out explain.html: the same as a page, and the attention of every head.", style="dim")


def _look(settings: ExplainSettings, device: torch.device) -> dict[str, Any]:
    """One checkpoint at one prompt, with what it wrote on."""
    checkpoint = open_checkpoint(settings.run, settings.checkpoint)
    engine = open_engine(checkpoint.folder, device, settings.precision)
    tokenizer = engine.tokenizer
    form = _form(settings, engine)
    prompt, written = _continued(settings, engine, form)
    ids = [*prompt, *written]
    view = look(engine.model, tokenizer, ids, len(written))
    shards = training_text(checkpoint, tokenizer)
    found = None if shards is None else origins(tokenizer, ids, len(written), shards, names_of(shards))
    view["origins"] = found
    view["sampling"] = {"temperature": settings.temperature, "top_k": settings.top_k, "top_p": settings.top_p}
    view["name"] = str(checkpoint.run_folder or checkpoint.folder)
    view["asked"] = form is not None
    return view


def _over_time(settings: ExplainSettings, device: torch.device) -> dict[str, Any]:
    """Every checkpoint that was kept, at the same prompt with the same seed."""
    run = find_run(settings.run)
    form, answers = None, []
    with progress("Asking every checkpoint", total=len(list_checkpoints(run))) as advance:
        for folder in list_checkpoints(run):
            try:
                verify(folder)
            except CheckpointError as error:
                warn(error.what)
                continue
            engine = open_engine(folder, device, settings.precision)
            tokenizer, form = engine.tokenizer, _form(settings, engine)
            prompt, written = _continued(settings, engine, form)
            expected = look(engine.model, tokenizer, prompt, 0)["tokens"][-1]
            shares = softmax_of(expected)
            loss = validation_loss(folder)
            answers.append(
                {
                    "step": step_of(folder) or 0,
                    "loss": loss if loss < float("inf") else None,
                    "text": tokenizer.decode(written),
                    "guesses": [
                        (spell(tokenizer, guess), round(share, 5))
                        for (guess, _, _), share in zip(expected["guesses"][:SHOWN], shares, strict=False)
                    ],
                }
            )
            advance(1)
    if not answers:
        raise RunError(f"{run} has no whole checkpoint.", "Let it train to its first validation.")
    if len(answers) < 4:
        kept = counted(len(answers), "checkpoint")
        warn(f"{run} kept only {kept}. Train with --train.keep 20 to see more of its growing up.")
    return {"name": str(run), "prompt": settings.prompt, "asked": form is not None, "checkpoints": answers}


def _form(settings: ExplainSettings, engine: Engine) -> RoleFormat | None:
    """How the prompt is written as a message; None: it is running text, as for every model that was not tuned."""
    tuned = roles_of(engine.tokenizer) is not None
    return RoleFormat() if tuned and settings.prompt and not settings.plain else None


def _continued(settings: ExplainSettings, engine: Engine, form: RoleFormat | None) -> tuple[list[int], list[int]]:
    """The ids of the prompt, and of what the model writes on. Of no prompt: the mark that begins a document."""
    prompt, tokenizer = well_formed(settings.prompt), engine.tokenizer
    if lost := cannot_spell(tokenizer, prompt):
        warn(lost)
    if form is None:
        ids, stops = tokenizer.encode(prompt).tolist() or [tokenizer.end_of_text], ()
        if cut := engine.too_long(ids):
            warn(cut)
    else:  # of a message that is too long its end, as in a chat
        size = engine.context_length
        room = size - min(settings.max_tokens, size // 2)
        ids = form.shortened(tokenizer, prompt.strip(), room)
        if len(form.prompt(tokenizer, prompt.strip(), first=True)) > room:
            warn(
                f"The model sees only the end of this message: its context holds {size:,} tokens, {size - room:,} of "
                "them for the answer."
            )
        stops = form.stops(tokenizer)
    return ids, list(engine.generate(ids, settings.max_tokens, _sampling(settings), stops))


def _sampling(settings: ExplainSettings) -> Sampling:
    seed = SEED if settings.seed is None else settings.seed
    return Sampling(settings.temperature, settings.top_k, settings.top_p, settings.min_p, seed=seed)
