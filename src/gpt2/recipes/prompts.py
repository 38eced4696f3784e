"""A file of prompts to a file of answers, many at once; stopped at any moment, it goes on where it was."""

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.console import counted, progress, say, warn
from gpt2.errors import DataError, RunError
from gpt2.files import disk_error, only_writer, read_json, write_json
from gpt2.generation.engine import Engine
from gpt2.generation.request import Request
from gpt2.signals import Signalled
from gpt2.tokenizer.base import well_formed

BEGINNING = b'{"index": '
"""Of every line of answers; by it a torn one is told from a line of somebody else."""
LONGEST_SHOWN = 40
"""Characters of a prompt that a message repeats."""


def answer_file(
    engine: Engine,
    source: Path,
    out: Path,
    asked: Callable[[str], list[Request]],
    options: Mapping[str, Any],
    model: Mapping[str, str],
) -> None:
    """Append a line of JSON for each prompt whose answers are complete: index, prompt, answers, finish.

    Lines come in the order in which answers are complete; `index` counts the prompts of the source from 0. Prompts
    that `out` has already are passed over; a last line that an interruption tore is removed first. What made the
    answers stands beside them, in `settings_of(out)`: one file never holds answers of two kinds.

    Prompts are encoded as rows of the engine become free. How many were longer than the context, or had characters
    that the tokenizer cannot spell, is said at the end.

    Args:
        engine: writes as many answers at once as it has slots.
        source: a prompt on each line that is not blank, or, if its name ends in .jsonl, a JSON object with `prompt`.
        out: where answers go.
        asked: a prompt to the requests for its answers, one or more.
        options: of `gpt2 generate`, all that the answers depend on; JSON values.
        model: `folder` and `sha256` of the weights; the latter tells one model from another.

    Raises:
        DataError: the source cannot be read, has no prompts, or has a line without one.
        RunError: `out` is no file, or answers other prompts, of which the first is named, or its answers were made
            with other options or another model.
        UserError: the system refused to write.
    """
    numbered = read_prompts(source)
    if not numbered:
        raise DataError(f"There are no prompts in {source}.", "Write one on each line.")
    if out.exists() and out.samefile(source):
        raise RunError(f"{out} holds the prompts.", "Choose another file for --out.")
    if out.exists() and not out.is_file():  # a device may have no end, and answers that are there are looked for first
        raise RunError(f"{out} is no file that answers could be found in again.", "Choose another one for --out.")
    try:
        with only_writer(out):
            _answer(engine, source, numbered, out, asked, options, model)
    except OSError as error:
        raise disk_error(error, f"writing {out}") from error


def _answer(
    engine: Engine,
    source: Path,
    numbered: list[tuple[int, str]],
    out: Path,
    asked: Callable[[str], list[Request]],
    options: Mapping[str, Any],
    model: Mapping[str, str],
) -> None:
    done = finished(out, source, numbered)
    prompts = [prompt for _, prompt in numbered]
    _require_alike(out, {"options": dict(options), "model": dict(model)}, begun=bool(done))
    todo = len(prompts) - len(done)
    warnings: Counter[str] = Counter()

    def requests() -> Iterator[tuple[int, list[Request]]]:
        for index in range(len(prompts)):
            if index not in done:
                wanted = asked(prompts[index])
                warnings["cut"] += engine.too_long(wanted[0].prompt_ids) is not None
                warnings["lost"] += engine.tokenizer.decode(wanted[0].prompt_ids) != well_formed(prompts[index])
                yield index, wanted

    if done:
        say(f"Answered in {out} already: {len(done):,} of {counted(len(prompts), 'prompt')}.", style="dim")
    with out.open("a", encoding="utf-8") as file, progress("Answering", total=todo) as advance:
        began, tokens = time.perf_counter(), 0
        try:
            for index, answers, finish, tokens in _answers(engine, requests()):
                entry = {"index": index, "prompt": prompts[index], "answers": answers, "finish": finish}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                file.flush()
                done.add(index)
                advance(1, f"{tokens / (time.perf_counter() - began):,.0f} tokens/s")
        except (KeyboardInterrupt, Signalled):
            say(f"{len(done):,} of {counted(len(prompts), 'prompt')} are answered. The same command goes on.")
            raise
        seconds = time.perf_counter() - began
    asked_for = counted(todo, "prompt")
    if cut := warnings["cut"]:
        warn(
            f"{cut:,} of {asked_for} had more tokens than the context of {engine.context_length:,}: of those the model "
            f"saw only the last {engine.seen_of_longer:,}."
        )
    if lost := warnings["lost"]:
        warn(f"{lost:,} of {asked_for} had characters that the tokenizer cannot spell: the model saw a mark.")
    made = f"{asked_for}, {counted(tokens, 'token')}"
    say(f"{made} in {seconds:.1f} s: {tokens / seconds:,.0f} tokens/s. {out}")


def settings_of(out: Path) -> Path:
    """The file that says what made the answers in another."""
    return out.with_name(f"{out.name}.settings.json")


def _require_alike(out: Path, now: dict[str, Any], begun: bool) -> None:
    """Write down what makes the answers; stop where those that are there were made otherwise."""
    path = settings_of(out)
    if begun and not path.exists():
        warn(f"{path} is gone, which said how the answers in {out} were made: the rest is made as asked for now.")
    elif begun:
        before = read_json(path)
        try:
            differ = _differences(before, now)
        except (TypeError, KeyError, AttributeError):
            raise RunError(f"{path} does not say how {out} was made.", "Choose another file for --out.") from None
        if differ:
            raise RunError(
                f"The answers in {out} were made with {differ}.",
                "Ask as before, to make the rest of them; or choose another file for --out.",
            )
        return
    write_json(path, now)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What was otherwise, in words; empty, where nothing was."""
    then = before["options"]
    words = [
        f"--{name.replace('_', '-')} {_shown(then.get(name))}, not {_shown(value)}"
        for name, value in now["options"].items()
        if then.get(name) != value
    ]
    if before["model"]["sha256"] != now["model"]["sha256"]:
        words.append(f"other weights ({before['model']['folder']}, not {now['model']['folder']})")
    return "; ".join(words)


def _shown(value: object) -> str:
    return "none" if value in (None, []) else " ".join(map(repr, value)) if isinstance(value, list) else str(value)


@dataclass(slots=True)
class _Entry:
    """The answers to one prompt, on their way."""

    index: int
    answers: list[str]
    finish: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.finish = [""] * len(self.answers)


def _answers(
    engine: Engine, asked: Iterable[tuple[int, list[Request]]]
) -> Iterator[tuple[int, list[str], list[str], int]]:
    """Prompts as they are complete: index, answers, how each ended, and the tokens of all so far."""
    running: dict[int, tuple[_Entry, int]] = {}  # by number of the request: the entry, and the place in it
    tokens = 0

    def requests() -> Iterator[Request]:
        numbers = itertools.count()
        for index, wanted in asked:
            entry = _Entry(index, [""] * len(wanted))
            for place, request in enumerate(wanted):
                running[next(numbers)] = entry, place
                yield request

    for number, delta in engine.run(requests()):
        entry, place = running[number]
        entry.answers[place] += delta.text
        tokens += len(delta.tokens)
        if delta.finish:
            del running[number]
            entry.finish[place] = delta.finish
            if all(entry.finish):
                yield entry.index, entry.answers, entry.finish, tokens


def read_prompts(source: Path) -> list[tuple[int, str]]:
    """The prompts of a file, in order, each with the number of its line.

    Raises:
        DataError: it cannot be read, is no text in UTF-8, or a line of JSON has no prompt, or none that is text;
            the line is named.
    """
    try:
        content = source.read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.", "Name a file of prompts.") from error
    try:
        # Only line feeds end a line: other separators may stand inside a prompt.
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        at = error.start + len(content) - len(error.object)  # a mark of the encoding at the beginning does not count
        line = content.count(b"\n", 0, at) + 1
        raise DataError(
            f"{source}, line {line:,}, is no text in UTF-8: byte {at:,} of the file is 0x{content[at]:02x}.",
            "Name a file of prompts, and save it as UTF-8.",
        ) from None
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if source.suffix.lower() != ".jsonl":
        return numbered
    prompts = []
    for number, line in numbered:
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, TypeError, KeyError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise DataError(
                f"{source}, line {number}: no JSON object with a text `prompt`.", 'Example: {"prompt": "Once"}'
            )
        if any("\ud800" <= character <= "\udfff" for character in prompt):
            raise DataError(
                f"{source}, line {number}: half of a surrogate pair, which is no character.", "Mend or remove the line."
            )
        prompts.append((number, prompt))
    return prompts


def finished(out: Path, source: Path, numbered: list[tuple[int, str]]) -> set[int]:
    """The indices of prompts that a file has answers to. A torn last line is cut off the file.

    Raises:
        RunError: a line is no answer, or one to another prompt than the source has; the file is left as it is.
    """
    if not out.exists():
        return set()
    torn, done = b"", set()
    before: dict[int, str] = {}  # index → a prompt that was answered, and stands in the source no more
    with out.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                torn = line  # only the last
                break
            try:
                entry = json.loads(line)
                index, prompt = entry["index"], entry["prompt"]
            except (ValueError, TypeError, KeyError, RecursionError):
                index = prompt = None
            if type(index) is not int or index < 0 or not isinstance(prompt, str):
                raise RunError(f"{out}, line {number:,}, is no answer to a prompt.", "Choose another file for --out.")
            if index >= len(numbered) or prompt != numbered[index][1]:
                before[index] = prompt
            done.add(index)
    if torn[: len(BEGINNING)] != BEGINNING[: len(torn)]:
        raise RunError(f"The last line of {out} is no answer to a prompt.", "Choose another file for --out.")
    if before:
        raise _changed(out, source, numbered, *min(before.items()))
    if torn:
        with out.open("r+b") as file:
            file.truncate(out.stat().st_size - len(torn))
    return done


def _changed(out: Path, source: Path, numbered: list[tuple[int, str]], index: int, before: str) -> RunError:
    """The first prompt that is another one than when the answers were begun."""
    place, now = f"{source} ends after {counted(len(numbered), 'prompt')}", "no more"
    if index < len(numbered):
        line, prompt = numbered[index]
        place, now = f"{source}, line {line:,}", f"now {_beginning(prompt)}"
    return RunError(
        f"{place}: prompt {index + 1:,} was {_beginning(before)} when the answers in {out} were begun, and is {now}.",
        f"Put it back, to make the rest of them; or choose another file for --out, to answer all of {source}.",
    )


def _beginning(text: str) -> str:
    return repr(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…")
