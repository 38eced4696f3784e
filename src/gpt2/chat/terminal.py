"""A conversation in the terminal, or line by line through a pipe."""

import contextlib
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from gpt2.chat.markdown import MarkdownStream, unechoed
from gpt2.chat.session import Session
from gpt2.config.load import nearest
from gpt2.console import counted, fail, listing, say
from gpt2.errors import ConfigError, UserError
from gpt2.generation.stream import printable, write
from gpt2.tokenizer.base import well_formed

HELP = {
    "help": ("/help", "this list"),
    "reset": ("/reset", "forget the conversation and begin a new one"),
    "undo": ("/undo", "take back your last message and its answer"),
    "retry": ("/retry", "another answer to your last message"),
    "system": ("/system [TEXT]", "what a tuned model is told before the conversation; none: shows it; -: nothing"),
    "temperature": ("/temperature X", "0: always the likeliest words; up to 5: ever more surprising"),
    "tokens": ("/tokens", "how much of the model's context is taken"),
    "save": ("/save [FILE]", "write the conversation to a JSON file"),
    "load": ("/load FILE", "go on with a conversation that was saved"),
    "quit": ("/quit", "leave; so does Ctrl-D"),
}
BLOCK = '"""'
"""Begins and ends a message of several lines."""
KEYS = (
    ("//…", "a message that begins with /"),
    ("…\\", "a line that goes on in the next one"),
    (f"{BLOCK}…{BLOCK}", "a message of several lines"),
    ("Ctrl-C", "stops an answer"),
)
"""What else is typed."""


def talk(session: Session, source: TextIO, out: TextIO) -> bool:
    """Answer what is typed, until the end of input or /quit.

    From a terminal there is a prompt, and Ctrl-C stops the answer; otherwise each line gets one answer. Answers go
    to `out`, everything else to stderr.

    Args:
        session: the conversation.
        source: where lines come from.
        out: where answers go.

    Returns:
        Whether no line was refused; from a terminal always, since who typed it has seen why and typed on.
    """
    interactive = source.isatty()
    if interactive:
        say(f"{session.origin}: /help lists the commands, Ctrl-D quits.", style="dim")
    if not session.format.answers:
        say(
            "This is a base model: it continues what you write and does not answer. Rows of questions and answers make "
            "one that does: gpt2 tune RUN faq.csv",
            "dim",
        )
    elif session.single:
        say("Each question is answered on its own: this model was tuned on single questions.", style="dim")
    well = True
    for line in _typed(session) if interactive else source:
        line = well_formed(line.rstrip("\r\n"))
        if not line.strip():
            continue
        try:
            if line.startswith("/") and not line.startswith("//"):
                if not _obey(session, line, out):
                    break
            else:
                _answer(session, session.ask(line.removeprefix("/") if line.startswith("//") else line), out)
        except KeyboardInterrupt:
            if not interactive:
                raise
            say("Stopped.", style="dim")
        except UserError as error:
            fail(error.what, error.fix)
            well = interactive
    return well


def _typed(session: Session) -> Iterator[str]:
    """Messages from the keyboard, with a history on the arrow keys where the system has readline.

    The prompt shows how much of the context the last answer took, with all before it that the model sees. A line that
    ends with a backslash goes on in the next one, and three quotes begin a message that three quotes end.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (input() uses it once it is there)
    interrupted = False
    while True:
        try:
            line = _message(f"{session.context[0]:,}/{session.engine.context_length:,} > ")
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


def _message(prompt: str) -> str:
    """One message, of one line or several."""
    further = "… ".rjust(len(prompt))
    line = input(prompt)
    if line.startswith(BLOCK):
        lines = [line.removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(input(further))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(input(further))
    return "\n".join(lines)


def _answer(session: Session, answer: Generator[str, None, None], out: TextIO) -> None:
    """Print an answer as it is written, then what there is to say about it."""
    drawn = session.format.answers and session.settings.markdown and out.isatty()
    with contextlib.closing(answer) as pieces:
        if drawn:
            with unechoed(out), MarkdownStream(out) as stream:
                for piece in pieces:
                    stream.feed(printable(piece))
        else:
            _print(pieces, out)
    if not session.turns[-1].answer.strip():
        if not drawn:
            write("\n", out)
        say("The model had nothing to say: it ended the text at once.", style="dim")
    for notice in session.notices:
        say(notice, style="dim")


def _print(pieces: Iterable[str], out: TextIO) -> None:
    ended = "\n"
    try:
        for piece in pieces:
            write(printable(piece), out)
            ended = piece
    finally:  # also when Ctrl-C stopped it
        if not ended.endswith("\n"):
            write("\n", out)


def _obey(session: Session, line: str, out: TextIO) -> bool:
    """Carry out a command; False if it was to leave.

    Raises:
        UserError: there is no such command, or it cannot be carried out.
    """
    name, value = (*line.removeprefix("/").split(maxsplit=1), "", "")[:2]
    value = value.strip()
    match name:
        case "help":
            listing([*HELP.values(), *KEYS])
        case "reset":
            session.reset()
            say("A new conversation.", style="dim")
        case "undo":
            say(f"Taken back: {' '.join(session.undo().message.split())[:60]}", style="dim")
        case "retry":
            _answer(session, session.retry(), out)
        case "system":
            if value:
                session.set_system("" if value == "-" else value)
            say(f"The system message: {session.system}" if session.system else "No system message.", style="dim")
        case "tokens":
            size, answer = session.engine.context_length, session.settings.max_tokens
            used, turns = session.context
            held = f"{used:,} of {size:,} tokens, in {counted(turns, 'turn')}"
            say(
                f"{held}; {min(answer, size // 2):,} are kept for the answer. "
                + (
                    "Each question is answered on its own."
                    if session.single
                    else "The oldest turns are forgotten first."
                ),
                style="dim",
            )
        case "load":
            if not value:
                raise ConfigError("Which conversation?", "Name its file: /load FILE, as /save wrote it.")
            session.load(Path(value))
            say(f"{counted(len(session.turns), 'turn')} of {value}.", style="dim")
        case "temperature":
            if value:
                session.set_temperature(_number(value))
            say(f"The temperature is {session.settings.temperature:g}.", style="dim")
        case "save":
            path = Path(value or time.strftime("chat-%Y%m%d-%H%M%S.json"))
            session.save(path)
            say(f"Saved {counted(len(session.turns), 'turn')} to {path}.", style="dim")
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
