"""`gpt2 chat`: talk to a trained model."""

import io
import sys

from gpt2.chat.session import Session
from gpt2.chat.terminal import talk
from gpt2.config.commands import ChatSettings
from gpt2.generation.load import open_engine
from gpt2.runtime import pick_device
from gpt2.training.checkpoint import open_checkpoint


def chat(settings: ChatSettings) -> None:
    """Read messages from stdin and print answers on stdout, until the end of input.

    Raises:
        UserError: no such run, checkpoint or device.
        SystemExit: with 2, through a pipe, after all other lines got their answers, where one was refused.
    """
    device = pick_device(settings.device)
    checkpoint = open_checkpoint(settings.run, settings.checkpoint)
    engine = open_engine(checkpoint.folder, device, settings.precision)
    run = checkpoint.settings
    session = Session(engine, template_of(run), settings, origin=str(checkpoint.folder), longest=run.get("turns"))
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a byte that is no text shall not end the conversation
    if not talk(session, sys.stdin, sys.stdout):
        raise SystemExit(2)


def template_of(run: dict[str, object]) -> str | None:
    """The template in a run's settings; folders from elsewhere have none."""
    template = run.get("template")
    return template if isinstance(template, str) else None
