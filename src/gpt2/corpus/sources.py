"""Paths to documents: files, folders and patterns are found, each file is looked at once, and its text streams."""

import difflib
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpt2.config.schema import DataSettings
from gpt2.corpus import python_docs
from gpt2.corpus.document import Document, reading
from gpt2.corpus.tables.table import Table, open_table
from gpt2.corpus.tables.template import Template, parse_template
from gpt2.corpus.texts import TextPieces, examine
from gpt2.errors import ConfigError, DataError

Kind = Literal["text", "table", "embedded", "conversations"]
_RULES = 1  # goes up when the same files and settings give other documents than before
_SUPPORTED = ".txt, .md, .rst (text), .csv and .tsv (tables)"


@dataclass(frozen=True)
class SourceFile:
    """One file that was found, and how it is read."""

    path: Path
    kind: Kind
    size: int
    """Bytes."""
    sha256: str
    encoding: str
    details: dict[str, Any]
    """For a table: separator, header, columns, picked, reasons (why each column is read or not). For a text: blank."""


@dataclass(frozen=True)
class Sources:
    """What is trained on. Made by `open_sources`."""

    files: tuple[SourceFile, ...]
    notes: tuple[str, ...]
    """What was found out or left out, in sentences for the user."""
    template: str | None
    """The template by which rows become text, with real newlines: the user's, or that of the embedded corpus."""
    counts: dict[str, int] = field(default_factory=dict)
    """After `documents` was read to its end: documents, short rows, empty rows and blank files; only what there was."""
    tables: dict[Path, Table] = field(default_factory=dict, repr=False)
    stamps: dict[Path, tuple[int, int]] = field(default_factory=dict, repr=False)
    """Size and time of change of each file when it was looked at."""

    def documents(self) -> Iterator[Document]:
        """Yield the documents, in the order of the files. Every call reads anew; nothing but the current row is held.

        Raises:
            DataError: a file changed since it was looked at, a row is malformed, or there is no document at all.
        """
        found: Counter[str] = Counter()
        self.counts.clear()
        for file in self.files:
            for document in self._documents_of(file, found):
                found["documents"] += 1
                yield document
        if not found["documents"]:
            raise DataError(
                f"There is nothing but white space in {_listed(str(file.path) for file in self.files)}.",
                "Give a file that has text.",
            )
        self.counts.update(found)

    def _documents_of(self, file: SourceFile, counts: Counter[str]) -> Iterator[Document]:
        if file.kind == "embedded":
            yield from python_docs.documents()
            return
        with reading(file.path):
            if _stamp(file.path) != self.stamps[file.path]:
                raise DataError(f"{file.path} changed while it was in use.", "Start again once it is complete.")
        if file.kind == "table":
            for number, text in self.tables[file.path].rows(counts):
                yield Document(str(file.path), number, (text,))
        elif file.details["blank"]:
            counts["blank files"] += 1
        else:
            yield Document(str(file.path), None, TextPieces(file.path, file.encoding))

    def fingerprint(self) -> str:
        """A sha256 over the files' contents and all that changes the documents read from them.

        It does not depend on where the files lie, what they are called, or in which order they were given.
        """
        read = []
        for file in self.files:
            what: list[Any] = [file.sha256, file.kind, file.encoding]
            if file.path in self.tables:
                table = self.tables[file.path]
                what += [table.separator, table.header, table.picked, self.template]
            read.append(json.dumps(what))
        return hashlib.sha256(json.dumps([_RULES, sorted(read)]).encode()).hexdigest()


def open_sources(paths: Sequence[str], settings: DataSettings) -> Sources:
    """Find the files and look at each, to its end: is it readable, in which encoding, with which columns.

    Args:
        paths: files, folders (with all below them) and patterns such as "books/**/*.txt"; hidden files are left out of
            folders and patterns. Without any, the documentation inside Python is read.
        settings: encoding, header, columns and template are used.

    Raises:
        DataError: a path is missing, empty, unsupported, unreadable or no text; or a table cannot be read.
        ConfigError: the encoding is unknown, the template malformed or without a column, or columns are given too.
    """
    if settings.columns and settings.template is not None:
        raise ConfigError(
            "data.columns and data.template are both given; a template says itself which columns are read.",
            "Leave out one of them.",
        )
    template = None if settings.template is None else parse_template(settings.template)
    if not paths:
        return _embedded(settings)
    notes: list[str] = []
    files = [_open_file(path, settings, template) for path in _find(paths, notes)]
    tables = {file.path: table for file, table, _ in files if table is not None}
    for _, _, said in files:
        notes.extend(said)
    if not tables and (template or settings.columns):
        name = "data.template" if template else "data.columns"
        notes.append(f"{name} has no effect: none of the files is a table.")
    return Sources(
        files=tuple(file for file, _, _ in files),
        notes=tuple(notes),
        template=template.text if template and tables else None,
        tables=tables,
        stamps={file.path: _stamp(file.path) for file, _, _ in files},
    )


def find_in_folder(folder: str | os.PathLike[str]) -> list[str]:
    """The supported files in and below a folder, in the order of names; none if there is no such folder.

    Empty files, hidden ones, and the README.md that explains the folder are left out.

    Raises:
        DataError: the folder holds files, but only unsupported ones.
    """
    top = Path(folder)
    if not top.is_dir():
        return []
    found = [path for path in _walk(top, set()) if not _explains(path, top)]
    supported = [path for path in found if kind_of(path)]
    if found and not supported:
        raise _none_supported(str(folder), found)
    return [str(path) for path in supported if path.stat().st_size]


def kind_of(path: Path) -> Literal["text", "table"] | None:
    """How a file of that name is read; None if it is not supported."""
    match path.suffix.lower():
        case ".txt" | ".md" | ".rst":
            return "text"
        case ".csv" | ".tsv":
            return "table"
        case _:
            return None


def embedded_file() -> tuple[SourceFile, str]:
    """The embedded corpus as if it were a file, and a sentence about it."""
    size, sha256 = python_docs.digest()
    file = SourceFile(Path(python_docs.origin()), "embedded", size, sha256, "utf-8", {})
    return file, f"Reading the documentation inside {python_docs.origin().title()}: {size / 1e6:.1f} MB."


def _embedded(settings: DataSettings) -> Sources:
    file, note = embedded_file()
    notes = [note]
    if settings.columns or settings.template is not None:
        notes.append("data.columns and data.template have no effect on it.")
    return Sources((file,), tuple(notes), python_docs.QA_TEMPLATE)


def _open_file(
    path: Path, settings: DataSettings, template: Template | None
) -> tuple[SourceFile, Table | None, list[str]]:
    """Look at one file: what it is, the table if it is one, and what to tell the user."""
    examined = examine(path, settings.encoding)
    notes = []
    if examined.detected:
        notes.append(
            f"{path} is not UTF-8; it is read as {examined.encoding}, the likeliest. "
            "If letters come out wrong, name its encoding with --data.encoding."
        )
    elif settings.encoding is None and not examined.encoding.startswith("utf-8"):
        notes.append(f"{path} is read as {examined.encoding}, as its byte-order mark says.")
    table, details = None, {}
    if kind_of(path) == "table":
        table = open_table(path, examined.encoding, settings.header, settings.columns, template)
        details = table.details
        notes.append(table.about)
        kind: Kind = "table"
    else:
        details["blank"] = examined.blank
        kind = "text"
    return SourceFile(path, kind, examined.size, examined.sha256, examined.encoding, details), table, notes


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _find(paths: Sequence[str], notes: list[str]) -> list[Path]:
    """The files behind some paths, each once, in the order given and within a folder in the order of names."""
    found: dict[Path, Path] = {}  # by where it really lies
    unsupported: list[Path] = []
    empty: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        with reading(path):
            if path.is_file():
                files = [_checked(path)]
            else:
                files = [file for file in _among(given, path) if not _explains(file)]
                unsupported += [file for file in files if not kind_of(file)]
                files = [file for file in files if kind_of(file)]
                empty += [file for file in files if not file.stat().st_size]
                files = [file for file in files if file.stat().st_size]
            for file in files:
                found.setdefault(file.resolve(), file)
    if empty:
        notes.append(f"Skipped, as they are empty: {_listed(map(str, dict.fromkeys(empty)))}.")
    if unsupported:
        notes.append(f"Skipped, as they are of other kinds: {_kinds(unsupported)}. Supported: {_SUPPORTED}.")
    if not found:
        raise DataError(f"All files in {_listed(paths)} are empty.", "Give a file that has text.")
    return list(found.values())


def _checked(path: Path) -> Path:
    """A file that the user named: it has to be one that can be read."""
    if not kind_of(path):
        raise DataError(
            f"{path} is of a kind that cannot be read ({path.suffix or 'no extension'}).",
            f"Supported are {_SUPPORTED}: convert it, or rename it if it is one of these.",
        )
    if not path.stat().st_size:
        raise DataError(f"{path} is empty.", "Put text into it, or leave it out.")
    return path


def _among(given: str, path: Path) -> list[Path]:
    """The files in a folder or behind a pattern, at least one of them supported."""
    if path.is_dir():
        files = list(_walk(path, set()))
        if not files:
            raise DataError(f"The folder {path} is empty.", f"Put files into it: {_SUPPORTED}.")
    elif path.exists():
        raise DataError(f"{path} is neither a file nor a folder.", "Write what it gives into a .txt file first.")
    elif glob.has_magic(given):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        seen: set[Path] = set()
        files = [file for match in matches for file in (_walk(match, seen) if match.is_dir() else [match])]
        if not files:
            raise DataError(f"No file matches {given}.", "Check the pattern; ** stands for any folders in between.")
    else:
        raise missing(path)
    if not any(map(kind_of, files)):
        raise _none_supported(given, files)
    return list(dict.fromkeys(files))


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the files below a folder in the order of names, without hidden ones; a folder that was seen is passed."""
    with reading(folder):
        if folder.resolve() in seen:  # a link that leads back up
            return
        seen.add(folder.resolve())
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk(entry, seen)
            elif entry.is_file():
                yield entry


def _explains(path: Path, folder: Path | None = None) -> bool:
    """Whether a file is the README.md of the folder for the user's data: documentation, not data."""
    return path.name.lower() == "readme.md" and (path.parent == folder or path.parent.resolve().name == "data")


def missing(path: Path, readable: Callable[[Path], object] = kind_of) -> DataError:
    """What to say of a path that does not exist: where it stops, and which folder or `readable` file is like it."""
    if path.is_symlink():
        return DataError(f"{path} is a link to {os.readlink(path)}, which does not exist.", "Mend the link.")
    first = path
    while not first.parent.exists():
        first = first.parent
    beside = sorted(first.parent.iterdir()) if first.parent.is_dir() else []
    names = [entry.name for entry in beside if entry.is_dir() or readable(entry)]
    alike = [name for name in names if difflib.get_close_matches(first.stem, [Path(name).stem])]
    near = difflib.get_close_matches(first.name, alike, n=1)
    what = f"There is no {path}." if first == path else f"There is no {path}: {first} does not exist."
    return DataError(what, f"Did you mean {first.parent / near[0]}?" if near else "Check the path.")


def _none_supported(where: str, files: Iterable[Path]) -> DataError:
    return DataError(
        f"{where} holds no file that can be read, only {_kinds(files)}.",
        f"Supported are {_SUPPORTED}: convert the files, or rename those that are one of these.",
    )


def _kinds(files: Iterable[Path]) -> str:
    """How many files there are of each extension: "3 .png, 1 .pdf"."""
    counts = Counter(path.suffix.lower() or "without extension" for path in dict.fromkeys(files))
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda each: (-each[1], each)))


def _listed(names: Iterable[str], most: int = 5) -> str:
    """Names with commas, a few of them and how many more."""
    known = list(names)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
