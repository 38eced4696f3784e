"""A conversation in the terminal, or line by line through a pipe."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gpt2.chat.session import Session
from gpt2.config.load import nearest
from gpt2.console import fail, say
from gpt2.errors import ConfigError, UserError
from gpt2.generation.stream import printable, write
from gpt2.tokenizer.base import well_formed

HELP = {
    "help": ("/help", "this list"),
    "reset": ("/reset", "forget the conversation and begin a new one"),
    "temperature": ("/temperature X", "0: always the likeliest words; up to 5: ever more surprising"),
    "save": ("/save [FILE]", "write the conversation to a JSON file"),
    "quit": ("/quit", "leave; so does Ctrl-D"),
}


def talk(session: Session, source: TextIO, out: TextIO) -> None:
    """Answer what is typed, until the end of input or /quit.

    From a terminal there is a prompt, and Ctrl-C stops the answer; otherwise each line gets one answer. Answers go
    to `out`, everything else to stderr.

    Args:
        session: the conversation.
        source: where lines come from.
        out: where answers go.
    """
    interactive = source.isatty()
    if interactive:
        say(f"{session.origin}: /help lists the commands, Ctrl-D quits.", style="dim")
    if not session.format.answers:
        say(
            "This is a base model: it continues what you write and does not answer. Rows of questions and answers make "
            "one that does: gpt2 train faq.csv --data.template 'Q: {question}\\nA: {answer}'",
            "dim",
        )
    for line in _typed() if interactive else source:
        line = well_formed(line.rstrip("\r\n"))
        if not line.strip():
            continue
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not _obey(session, line):
                    return
            else:
                _answer(session, line.removeprefix("/") if line.startswith("//") else line, out)
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("Stopped.", style="dim")
        except UserError as error:
            fail(error.what, error.fix)


def _typed() -> Iterator[str]:
    """Lines from the keyboard, with a history on the arrow keys where the system has readline."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it once it is there)
    interrupted = False
    while True:
        try:
            line = input("> ")
        except EOFError:
            say("")  # the shell's prompt begins on its own line
            return
        except KeyboardInterrupt:
            say("")
            if interrupted:
                return
            interrupted = True
            say("To leave, type /quit, or press Ctrl-D, or Ctrl-C once more.", style="dim")
        else:
            interrupted = False
            yield line


def _answer(session: Session, message: str, out: TextIO) -> None:
    """Print an answer as it is written, then what there is to say about it."""
    ended = "\n"
    try:
        with contextlib.closing(session.ask(message)) as pieces:
            for piece in pieces:
                write(printable(piece), out)
                ended = piece
    finally:  # also when Ctrl-C stopped it
        if not ended.endswith("\n"):
            write("\n", out)
    if not session.turns[-1].answer.strip():
        write("\n", out)
        say("The model had nothing to say: it ended the text at once.", style="dim")
    for notice in session.notices:
        say(notice, style="dim")


def _obey(session: Session, line: str) -> bool:
    """Carry out a command; False if it was to leave.

    Raises:
        UserError: there is no such command, or it cannot be carried out.
    """
    name, value = (*line.removeprefix("/").split(maxsplit=1), "", "")[:2]
    value = value.strip()
    match name:
        case "help":
            for usage, meaning in HELP.values():
                say(f"  {usage:<16}{meaning}")
            say("  A message that begins with / is typed with //.")
        case "reset":
            session.reset()
            say("A new conversation.", style="dim")
        case "temperature":
            if value:
                session.set_temperature(_number(value))
            say(f"The temperature is {session.settings.temperature:g}.", style="dim")
        case "save":
            path = Path(value or time.strftime("chat-%Y%m%d-%H%M%S.json"))
            session.save(path)
            say(f"Saved {len(session.turns)} turns to {path}.", style="dim")
        case "quit":
            return False
        case _:
            guess = nearest(name, list(HELP))
            raise ConfigError(
                f"There is no command /{name}.", f"Did you mean /{guess}?" if guess else "/help lists the commands."
            )
    return True


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{value!r} is no number.", "Give a temperature from 0 to 5, such as 0.8.") from None
