"""Files to conversations: tables of questions and answers, JSON lines of fields or of messages, the embedded ones."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from gpt2.config.schema import DataSettings
from gpt2.corpus import python_docs
from gpt2.corpus.document import Document, reading
from gpt2.corpus.python_docs import EMBEDDED
from gpt2.corpus.sources import SourceFile, embedded_file, missing
from gpt2.corpus.tables.columns import judge_columns
from gpt2.corpus.tables.records import LINE_LIMIT
from gpt2.corpus.tables.table import Table, open_table
from gpt2.corpus.tables.template import Bound, parse_template
from gpt2.corpus.texts import examine
from gpt2.errors import ConfigError, DataError

Speaker = Literal["system", "user", "assistant"]
_RULES = 1  # goes up when the same files and settings give other conversations than before
_LOOK = 200  # records that are looked at to guess what their fields are

# What tables call their columns, the surest name first.
_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "request", "user", "message", "title", "input", "q"),
    "response": ("response", "answer", "output", "completion", "reply", "assistant", "target", "chosen", "a"),
    "context": ("input", "context"),
    "system": ("system", "system_prompt"),
}


class Message(NamedTuple):
    """What one speaker said in one turn."""

    role: Speaker
    content: str


Conversation = tuple[Message, ...]
"""Messages in their order; it ends with an answer."""


class Fields(NamedTuple):
    """Which column of a table, or key of a JSON object, holds what."""

    prompt: str | None = None
    response: str | None = None
    context: str | None = None
    """Stands below the prompt, after an empty line, where it is not empty."""
    system: str | None = None

    def conversation(self, row: Mapping[str, str]) -> Conversation:
        """The question and answer of a row; empty messages are left out."""
        said = {name: row.get(key, "").strip() if key else "" for name, key in self._asdict().items()}
        asked = "\n\n".join(part for part in (said["prompt"], said["context"]) if part)
        turns: list[tuple[Speaker, str]] = [
            ("system", said["system"]),
            ("user", asked),
            ("assistant", said["response"]),
        ]
        return tuple(Message(role, content) for role, content in turns if content)


@dataclass(frozen=True)
class Opened:
    """A file that was looked at, and how its records become conversations."""

    file: SourceFile
    fields: Fields | None
    """None: its records hold lists of messages."""
    table: Table | None = None
    template: Bound | None = None


@dataclass(frozen=True)
class Conversations:
    """What is tuned on. Made by `open_conversations`."""

    opened: tuple[Opened, ...]
    notes: tuple[str, ...]
    """What was found out, in sentences for the user."""
    template: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    """After reading to the end: what was left out, only what there was."""

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files, as for a run on text."""
        return tuple(each.file for each in self.opened)

    def read(self) -> Iterator[tuple[Document, Conversation | None]]:
        """Yield each conversation with its text, by whose hash it is split; every call reads anew.

        The embedded documents that are no conversation come along, so that the same ones validate as in a run on text.

        Raises:
            DataError: a record is malformed, or there is no conversation at all.
        """
        counts: Counter[str] = Counter()
        found = 0
        for each in self.opened:
            for document, conversation in _records(each, counts):
                if conversation is None or (len(conversation) > 1 and conversation[-1].role == "assistant"):
                    found += conversation is not None
                    yield document, conversation
                else:
                    counts["conversations without a question and an answer"] += 1
        self.counts.clear()
        self.counts.update(counts)
        if not found:
            raise DataError(
                f"There is no conversation in {', '.join(str(file.path) for file in self.files)}.",
                "Each needs a question and an answer, neither of them empty.",
            )

    def fingerprint(self) -> str:
        """A sha256 over the files' contents and all that changes the conversations read from them."""
        read = [
            json.dumps([each.file.sha256, each.file.encoding, each.fields, each.file.details, self.template])
            for each in self.opened
        ]
        return hashlib.sha256(json.dumps([_RULES, sorted(read)]).encode()).hexdigest()


def open_conversations(
    paths: Sequence[str], fields: Fields, settings: DataSettings, template: str | None = None
) -> Conversations:
    """Look at each file: its kind, its encoding, and which of its fields is what.

    Args:
        paths: .csv, .tsv and .jsonl files; or `python-docs`, the questions and answers inside Python.
        fields: as the user named them; what is None is guessed, and said.
        settings: encoding and header are used.
        template: by which the base model's text was made of table rows. A row is then split by the same text as there,
            so that what it validated on is not trained on here.

    Raises:
        DataError: a file is missing, of another kind, malformed, or has no field that could be a question or answer.
        ConfigError: a field that was named is not there.
    """
    opened, notes = [], []
    for path in paths:
        each, note = _open(path, fields, settings, template)
        opened.append(each)
        notes.append(note)
    return Conversations(tuple(opened), tuple(notes), template)


def _open(path: str, fields: Fields, settings: DataSettings, template: str | None) -> tuple[Opened, str]:
    if path == EMBEDDED:
        file, note = embedded_file()
        return Opened(file, Fields("question", "answer")), note
    where = Path(path).expanduser()
    kind = where.suffix.lower()
    if not where.exists():
        raise missing(where)
    if kind not in (".csv", ".tsv", ".jsonl") or not where.is_file():
        raise DataError(
            f"{where} holds no conversations that can be read.",
            "Give a .csv or .tsv table of questions and answers, or a .jsonl file with a JSON object on each line.",
        )
    examined = examine(where, settings.encoding)
    if examined.blank:
        raise DataError(f"{where} is empty.", "Put questions and answers into it, or leave it out.")
    table, bound = None, None
    if kind == ".jsonl":
        names, sample = _keys(where, examined.encoding)
    else:
        table = open_table(where, examined.encoding, settings.header, whole=True)
        names = table.columns
        sample = [list(row) for _, (_, row) in zip(range(_LOOK), table.cells(Counter()), strict=False)]
        if template is not None:
            with contextlib.suppress(ConfigError):
                bound = parse_template(template).bind(names, path)
    chosen = None if "messages" in names and not any(fields) else _guess(fields, names, sample, str(where))
    what = "messages" if chosen is None else ", ".join(f"{n} = {v}" for n, v in chosen._asdict().items() if v)
    details = {} if table is None else {"separator": table.separator, "header": table.header}
    file = SourceFile(where, "conversations", examined.size, examined.sha256, examined.encoding, details)
    asked = chosen is not None and not (fields.prompt and fields.response)
    guessed = " (a guess: --prompt and --response say it otherwise)" if asked else ""
    return Opened(file, chosen, table, bound), f"{where}: {what}{guessed}."


def _guess(fields: Fields, names: Sequence[str], sample: list[list[str]], path: str) -> Fields:
    """Fill what the user left open: by the names of the fields, else the two that hold text, in their order.

    Raises:
        ConfigError: a named field is not there.
        DataError: no two fields could be a question and an answer.
    """
    for option, name in fields._asdict().items():
        if name is not None and name not in names:
            raise ConfigError(f"{path} has no {name!r} for --{option}.", f"It has: {', '.join(names)}.")
    taken = {name for name in fields if name is not None}
    found: dict[str, str | None] = fields._asdict()

    def named(role: str) -> str | None:
        for wanted in _NAMES[role]:
            for name in names:
                if name.lower() == wanted and name not in taken:
                    taken.add(name)
                    return name
        return None

    for role in ("response", "prompt"):
        found[role] = found[role] or named(role)
    if found["prompt"] is None or found["response"] is None:
        text = [
            judged.column for judged in judge_columns(names, sample) if judged.picked and judged.column not in taken
        ]
        for role in ("prompt", "response"):
            if found[role] is None and text:
                found[role] = text.pop(0)
    if found["prompt"] is None or found["response"] is None:
        raise DataError(
            f"{path}: which of {', '.join(names)} is the question and which the answer?",
            "Say it: --prompt NAME --response NAME.",
        )
    for role in ("context", "system"):
        found[role] = found[role] or named(role)
    return Fields(**found)


def _records(opened: Opened, counts: Counter[str]) -> Iterator[tuple[Document, Conversation | None]]:
    path = str(opened.file.path)
    if opened.file.kind == "embedded":
        for name, text in python_docs.text_documents():
            yield Document(f"{path}: {name}", None, (text,)), None
        assert opened.fields is not None
        for name, question, answer in python_docs.question_answer_rows():
            text = python_docs.QA_TEMPLATE.format(question=question, answer=answer)
            row = {"question": question, "answer": answer}
            yield Document(f"{path}: {name}", None, (text,)), opened.fields.conversation(row)
    elif opened.table is not None:
        assert opened.fields is not None
        for number, cells in opened.table.cells(counts):
            conversation = opened.fields.conversation(dict(zip(opened.table.columns, cells, strict=True)))
            text = opened.template.render(cells) if opened.template else _text(conversation)
            yield Document(path, number, (text,)), conversation
    else:
        for number, value in _objects(opened.file.path, opened.file.encoding):
            where = f"{path}, line {number:,}"
            if opened.fields is None:
                conversation = _messages(value.get("messages"), where)
            else:
                conversation = opened.fields.conversation(_strings(value, opened.fields, where))
            yield Document(path, number, (_text(conversation),)), conversation


def _text(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation)


def _objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON object of each line that is not blank, and the line's number."""
    with reading(path), path.open(encoding=encoding) as file:
        number = 0
        while line := file.readline(LINE_LIMIT):
            number += 1
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number:,}: no JSON: {error}.", "Put one JSON object on each line."
                ) from None
            if not isinstance(value, dict):
                raise DataError(
                    f"{path}, line {number:,}: a JSON object is needed, not {str(value)[:40]!r}.",
                    'Write {"messages": […]} or {"prompt": "…", "response": "…"} on each line.',
                )
            yield number, value


def _keys(path: Path, encoding: str) -> tuple[list[str], list[list[str]]]:
    """The keys of the first objects, and their values that are text."""
    first = [value for _, (_, value) in zip(range(_LOOK), _objects(path, encoding), strict=False)]
    names = list(dict.fromkeys(name for value in first for name in value))
    return names, [[text if isinstance(text := value.get(name), str) else "" for name in names] for value in first]


def _strings(value: dict[str, Any], fields: Fields, where: str) -> dict[str, str]:
    """The fields of an object that are read; a missing one, or null, is empty."""
    read = {}
    for name in fields:
        content = value.get(name) if name else None
        if content is not None and not isinstance(content, str):
            raise DataError(f"{where}: {name} is {str(content)[:40]!r}, no text.", "Put it in quotes.")
        if name and content:
            read[name] = content
    return read


def _messages(value: Any, where: str) -> Conversation:
    """The messages of a list, up to the last answer; the system may speak first only."""
    form = 'A message is {"role": "system" | "user" | "assistant", "content": "…"}.'
    if not isinstance(value, list):
        raise DataError(f"{where}: messages is {str(value)[:40]!r}, no list.", form)
    messages = []
    for entry in value:
        role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if role not in get_args(Speaker) or not isinstance(content, str):
            raise DataError(f"{where}: {str(entry)[:60]!r} is no message.", form)
        if role == "system" and messages:
            raise DataError(f"{where}: a system message stands behind others.", "It can only be the first one.")
        messages.append(Message(cast(Speaker, role), content.strip()))
    while messages and messages[-1].role != "assistant":
        messages.pop()
    return tuple(messages)
