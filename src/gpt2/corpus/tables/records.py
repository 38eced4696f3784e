"""Delimited text to records, strictly: what is malformed is an error with its line, and nothing is swallowed."""

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from gpt2.corpus.document import reading
from gpt2.errors import DataError

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
"""What may stand between fields, and its name; the first fitting one of equals is taken."""
FIELD_LIMIT = 1_000_000
"""Characters of a field: more is nearly always a quote that was never closed."""
LINE_LIMIT = 16 * 2**20
"""Characters of a line, so that a file without line ends does not fill the memory."""
_SAMPLE_RECORDS = 100
_SAMPLE_CHARACTERS = 4 * 2**20


def records(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with the number of the line on which it begins.

    Raises:
        DataError: a quote is never closed or closed within a field, or a field or line is too long; the line is named.
    """
    csv.field_size_limit(FIELD_LIMIT)  # of the whole process: the module has no other way to say it
    with reading(path), path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(_lines(path, file), delimiter=separator, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise _malformed(path, line, reader.line_num, str(error)) from None
            if len(fields) > 1 or (fields and fields[0].strip()):
                yield line, fields


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    for number in itertools.count(1):
        line = file.readline(LINE_LIMIT)
        if not line:
            return
        if len(line) == LINE_LIMIT:
            raise DataError(
                f"{path}, line {number:,}: longer than {LINE_LIMIT:,} characters.",
                "A table has one record a line; if this is plain text, name it .txt.",
            )
        yield line


def _malformed(path: Path, line: int, last: int, error: str) -> DataError:
    """What the csv module found wrong in the record that begins on `line`, when it had read up to line `last`."""
    where = f"{path}, line {line:,}"
    close = 'Close the quote; a quote within a quoted field is written twice ("").'
    if "unexpected end" in error:
        return DataError(f"{where}: a quote that opens in this row is never closed.", close)
    if "field larger" in error:
        return DataError(
            f"{where}: a field has more than {FIELD_LIMIT:,} characters, up to line {last:,} at least.",
            f"If a quote is left open there: {close.lower()} If it is one long text, save it as .txt.",
        )
    return DataError(f"{where}: text follows the closing quote of a field, on line {last:,}.", close)


def sample(path: Path, encoding: str, separator: str) -> tuple[list[list[str]], DataError | None]:
    """The first records, as many as a judgement needs, and the error that ended them early, if one did."""
    found: list[list[str]] = []
    characters = 0
    try:
        for _, fields in records(path, encoding, separator):
            found.append(fields)
            characters += sum(map(len, fields))
            if len(found) == _SAMPLE_RECORDS or characters > _SAMPLE_CHARACTERS:
                break
    except DataError as error:
        return found, error
    return found, None


def find_separator(path: Path, encoding: str) -> str:
    """The separator by which the first records agree best on their number of fields.

    One that splits the first record is preferred to one that does not, as long as at least half of the others agree.
    Where none splits it, the table has one column, and the separator is one that does not stand in its values.
    """
    prefers_tab = path.suffix.lower() == ".tsv"
    best, best_score = "\t" if prefers_tab else ",", (False, 0.0, 0)
    for separator in sorted(SEPARATORS, key=lambda separator: prefers_tab and separator != "\t"):
        found, _ = sample(path, encoding, separator)
        if not found:  # the very first record is malformed with this one
            continue
        width = len(found[0])
        share = sum(len(fields) == width for fields in found) / len(found)
        score = (width > 1 and share >= 0.5, share, width)
        if score > best_score:
            best, best_score = separator, score
        if prefers_tab and separator == "\t" and width > 1:
            break
    return best
