"""Files to conversations: tables of questions and answers, JSON lines of fields or of messages, the embedded ones."""

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from gpt2.config.schema import DataSettings
from gpt2.corpus import python_docs
from gpt2.corpus.document import Document, reading
from gpt2.corpus.fields import Conversation, Fields, Message, Sample, Speaker, guess_fields
from gpt2.corpus.python_docs import EMBEDDED
from gpt2.corpus.sources import SourceFile, embedded_file, missing
from gpt2.corpus.tables.records import LINE_LIMIT
from gpt2.corpus.tables.table import Table, open_table
from gpt2.corpus.tables.template import Bound, parse_template
from gpt2.corpus.texts import examine
from gpt2.errors import ConfigError, DataError

_RULES = 1  # goes up when the same files and settings give other conversations than before
_KINDS = (".csv", ".tsv", ".jsonl")
_LOOK = 200  # records that are looked at to guess what their fields are


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

    @property
    def preferences(self) -> bool:
        """Whether there are two answers to each question, of which the first is preferred."""
        return any(each.fields is not None and each.fields.rejected is not None for each in self.opened)

    def read(self) -> Iterator[tuple[Document, Sample | None]]:
        """Yield each record's conversations with its text, by whose hash it is split; every call reads anew.

        The embedded documents that are no conversation come along, so that the same ones validate as in a run on text.

        Raises:
            DataError: a record is malformed, or there is no conversation at all.
        """
        counts: Counter[str] = Counter()
        found = 0
        for each in self.opened:
            for document, sample in _records(each, counts):
                if sample is not None and not all(said and said[-1].role == "assistant" for said in sample):
                    counts["conversations without an answer"] += 1
                elif sample is not None and min(map(len, sample)) < 2:
                    counts["answers without a question"] += 1
                elif sample is not None and len(sample) > len(set(sample)):
                    counts["pairs of equal answers"] += 1
                else:
                    found += sample is not None
                    yield document, sample
        self.counts.clear()
        self.counts.update(counts)
        if not found:
            raise DataError(
                f"There is no conversation in {', '.join(str(file.path) for file in self.files)}.",
                "Each needs a question and an answer, neither of them empty; two answers to choose from must differ.",
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
    pairs = [str(each.file.path) for each in opened if each.fields is not None and each.fields.rejected is not None]
    if 0 < len(pairs) < len(opened):
        raise DataError(
            f"Some files have two answers to choose from ({', '.join(pairs)}), others have one.",
            "Tune on answers first, then on preferences: two runs, the second one with the first as its base.",
        )
    return Conversations(tuple(opened), tuple(notes), template)


def _open(path: str, fields: Fields, settings: DataSettings, template: str | None) -> tuple[Opened, str]:
    if path == EMBEDDED:
        file, note = embedded_file()
        return Opened(file, Fields("question", "answer")), note
    where = Path(path).expanduser()
    kind = where.suffix.lower()
    if not where.exists():
        raise missing(where, lambda path: path.suffix.lower() in _KINDS)
    if kind not in _KINDS or not where.is_file():
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
    chosen = None if "messages" in names and not any(fields) else guess_fields(fields, names, sample, str(where))
    what = "messages" if chosen is None else ", ".join(f"{n} = {v}" for n, v in chosen._asdict().items() if v)
    details = {} if table is None else {"separator": table.separator, "header": table.header}
    file = SourceFile(where, "conversations", examined.size, examined.sha256, examined.encoding, details)
    asked = chosen is not None and not (fields.prompt and fields.response)
    guessed = " (a guess: --prompt and --response say it otherwise)" if asked else ""
    if chosen is not None and chosen.rejected:
        what += "; of two answers, the response is preferred"
    return Opened(file, chosen, table, bound), f"{where}: {what}{guessed}."


def _records(opened: Opened, counts: Counter[str]) -> Iterator[tuple[Document, Sample | None]]:
    path = str(opened.file.path)
    if opened.file.kind == "embedded":
        for name, text in python_docs.text_documents():
            yield Document(f"{path}: {name}", None, (text,)), None
        assert opened.fields is not None
        for name, question, answer in python_docs.question_answer_rows():
            text = python_docs.QA_TEMPLATE.format(question=question, answer=answer)
            row = {"question": question, "answer": answer}
            yield Document(f"{path}: {name}", None, (text,)), opened.fields.sample(row)
    elif opened.table is not None:
        assert opened.fields is not None
        for number, cells in opened.table.cells(counts):
            sample = opened.fields.sample(dict(zip(opened.table.columns, cells, strict=True)))
            text = opened.template.render(cells) if opened.template else _text(sample)
            yield Document(path, number, (text,)), sample
    else:
        for number, value in _objects(opened.file.path, opened.file.encoding):
            where = f"{path}, line {number:,}"
            if opened.fields is None:
                sample: Sample = (_messages(value.get("messages"), where),)
            else:
                sample = opened.fields.sample(_strings(value, opened.fields, where))
            yield Document(path, number, (_text(sample),)), sample


def _text(sample: Sample) -> str:
    return "\n".join(message.content for conversation in sample for message in conversation)


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
