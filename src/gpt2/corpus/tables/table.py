"""A CSV or TSV file whose layout is known and whose text is chosen: its rows stream as text."""

import difflib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt2.corpus.tables.columns import Judgement, judge_columns, looks_like_header
from gpt2.corpus.tables.records import SEPARATORS, find_separator, records, sample
from gpt2.corpus.tables.template import Bound, Template
from gpt2.errors import DataError

_LOOK_ROWS = 1_000
_LOOK_CHARACTERS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Table:
    """How a table is read. Made by `open_table`."""

    path: Path
    encoding: str
    separator: str
    header: bool
    """Whether the first record names the columns; without, they are column_1, column_2 and so on."""
    columns: tuple[str, ...]
    picked: tuple[str, ...]
    """The columns whose text is read, in their order in the text."""
    judgements: tuple[Judgement, ...]
    """Why each column is picked or not; empty where the user said which."""
    template: Bound | None
    undivided: str | None = None
    """A separator that stands in the first record, but by which the others do not agree on a number of fields."""

    @property
    def details(self) -> dict[str, Any]:
        """How it is read, as plain values to keep with a run."""
        return {
            "separator": self.separator,
            "header": self.header,
            "columns": self.columns,
            "picked": self.picked,
            "reasons": {each.column: each.reason for each in self.judgements},
        }

    @property
    def about(self) -> str:
        """What is read of it, and where that was not said by the user, why: a line a column."""
        layout = "one column"
        if len(self.columns) > 1:
            layout = f"{len(self.columns)} columns, separated by {SEPARATORS[self.separator]}"
        header = "" if self.header else ", no header"
        about = f"{self.path}: {layout}{header}; reading {', '.join(self.picked)}."
        lines = [
            f"  {each.column}: {'read' if each.picked else 'left out'} ({each.reason})" for each in self.judgements
        ]
        if self.undivided:
            lines.append(
                f"  The first line has a {SEPARATORS[self.undivided]}, but the rows do not agree on a number of "
                "fields: each is read whole. Is every field with a separator in quotes?"
            )
        return "\n".join([about, *lines])

    def rows(self, counts: Counter[str]) -> Iterator[tuple[int, str]]:
        """Yield the number of each record, from 1, and its text, which is never blank.

        Args:
            counts: "short rows" (fewer fields than columns: the missing are empty) and "empty rows" (nothing in what
                is picked: left out) are added to it.

        Raises:
            DataError: a record is malformed or has too many fields; its line is named.
        """
        positions = [self.columns.index(name) for name in self.picked]
        for number, row in self.cells(counts):
            filled = [row[position] for position in positions if row[position].strip()]
            if filled:
                yield number, "\n".join(filled) if self.template is None else self.template.render(row)
            else:
                counts["empty rows"] += 1

    def cells(self, counts: Counter[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the number of each record, from 1, and its cells, one for each column.

        Args:
            counts: "short rows" are added to it.

        Raises:
            DataError: as `rows`.
        """
        body = _body(self.path, self.encoding, self.separator, self.header, len(self.columns))
        for number, row in enumerate(body, 1):
            if len(row) < len(self.columns):
                counts["short rows"] += 1
                row.extend("" for _ in range(len(self.columns) - len(row)))
            for position, cell in enumerate(row):  # a quoted cell keeps the line ends of the system that wrote it
                if "\r" in cell:
                    row[position] = cell.replace("\r\n", "\n").replace("\r", "\n")
            yield number, row[: len(self.columns)]


def open_table(
    path: Path,
    encoding: str,
    header: Literal["auto", "yes", "no"] = "auto",
    columns: Sequence[str] = (),
    template: Template | None = None,
    whole: bool = False,
) -> Table:
    """Find a table's separator and header, and the columns to read: those given, the template's, or the text columns.

    With `whole`, all of them are, whatever they hold.

    Raises:
        DataError: a record among the first is malformed; there are no rows; two columns share a name; a column is
            missing; or no column holds text.
        ConfigError: a field of the template is no column.
    """
    separator = find_separator(path, encoding)
    found, error = sample(path, encoding, separator)
    if not found:
        raise error or DataError(f"{path} has no rows.", "Fill it, or leave it out of the sources.")
    named = header == "yes" or (header == "auto" and looks_like_header(found[0], found[1:]))
    names = _names(path, encoding, separator) if named else [f"column_{i}" for i in range(1, len(found[0]) + 1)]
    if named and len(found) == 1:
        raise error or DataError(
            f"{path} has a header ({', '.join(names)}) but no rows.",
            "Add rows; if that line is data and no header, set --data.header no.",
        )
    judgements: list[Judgement] = []
    bound = None
    if template is not None:
        bound = template.bind(names, str(path))
        picked = list(dict.fromkeys(names[position] for position in bound.cells))
    elif whole:
        picked = list(names)
    elif columns:
        picked = [_existing(path, column, names) for column in columns]
    else:
        judgements = judge_columns(names, _first(_body(path, encoding, separator, named, len(names))))
        picked = [judgement.column for judgement in judgements if judgement.picked]
        if not picked:
            raise DataError(
                f"{path} holds no text: " + ", ".join(f"{each.column}: {each.reason}" for each in judgements) + ".",
                "Choose a table with a column of text; to read a column nevertheless, name it with --data.columns.",
            )
    undivided = next((each for each in SEPARATORS if len(names) == 1 and each in found[0][0]), None)
    return Table(path, encoding, separator, named, tuple(names), tuple(picked), tuple(judgements), bound, undivided)


def _names(path: Path, encoding: str, separator: str) -> list[str]:
    line, fields = next(records(path, encoding, separator))
    names = [name.strip() or f"column_{i}" for i, name in enumerate(fields, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}, line {line:,}: two columns are called {twice[0]!r}.",
            "Give each column its own name; if that line is data and no header, set --data.header no.",
        )
    return names


def _existing(path: Path, column: str, names: Sequence[str]) -> str:
    if column in names:
        return column
    near = difflib.get_close_matches(column, names, n=1)
    raise DataError(
        f"{path} has no column {column!r}.",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Its columns are {', '.join(names)}.",
    )


def _body(path: Path, encoding: str, separator: str, header: bool, width: int) -> Iterator[list[str]]:
    """Yield the records after the header; fields beyond the last column must be empty, as spreadsheets write them."""
    for line, fields in itertools.islice(records(path, encoding, separator), int(header), None):
        if any(extra.strip() for extra in fields[width:]):
            raise DataError(
                f"{path}, line {line:,}: the row has {len(fields)} fields, but there are {width} columns.",
                "Put quotes around a field that contains the separator.",
            )
        yield fields


def _first(rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """As many of the rows as the judgement of the columns needs."""
    characters = 0
    for row in itertools.islice(rows, _LOOK_ROWS):
        yield row
        characters += sum(map(len, row))
        if characters > _LOOK_CHARACTERS:
            return
