"""The text of a row by a template, such as "Q: {question}\\nA: {answer}": literal text and names of columns."""

import difflib
import string
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Bound:
    """A template whose fields are positions in a row."""

    parts: tuple[tuple[str, int | None], ...]
    """Literal text, and the position of the cell that follows it (None at the end)."""

    @property
    def cells(self) -> list[int]:
        """The positions that it reads."""
        return [position for _, position in self.parts if position is not None]

    def render(self, row: Sequence[str]) -> str:
        """The text of a row; it has a cell for every column."""
        return "".join(literal + ("" if position is None else row[position]) for literal, position in self.parts)


@dataclass(frozen=True, slots=True)
class Template:
    """A template that was checked for itself; `bind` checks it against the columns of a table."""

    text: str
    """As the user wrote it, but with real newlines and tabs."""
    parts: tuple[tuple[str, str | None, str], ...]
    """Literal text, the name of a field after it, and what follows the name within the braces."""

    def bind(self, columns: Sequence[str], origin: str) -> Bound:
        """Find the template's fields among a table's columns.

        Raises:
            ConfigError: a field is no column; the columns are named.
        """
        return Bound(
            tuple(
                (text, None if name is None else _find(name, more, columns, origin)) for text, name, more in self.parts
            )
        )


def _find(name: str, more: str, columns: Sequence[str], origin: str) -> int:
    # A column may be called "to: name" or "done!": then all that stands in the braces is its name.
    if name + more in columns:
        return columns.index(name + more)
    if name in columns:
        raise ConfigError(
            f"data.template: {{{name + more}}} has a format; a field is only the name of a column.",
            f"Write {{{name}}}.",
        )
    near = difflib.get_close_matches(name + more, columns, n=1)
    there = ", ".join(f"{{{column}}}" for column in columns)
    raise ConfigError(
        f"data.template: {origin} has no column {name + more!r}.",
        (f"Did you mean {{{near[0]}}}? " if near else "") + f"Its columns are {there}.",
    )


def parse_template(template: str) -> Template:
    r"""Parse a template: names of columns in braces, {{ and }} for braces, \n and \t for newline and tab.

    Raises:
        ConfigError: it has no field, a nameless one, or its braces do not match.
    """
    text = template.replace(r"\n", "\n").replace(r"\t", "\t")
    parts: list[tuple[str, str | None, str]] = []
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            more = (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            parts.append((literal, name, more))
    except ValueError as error:
        raise ConfigError(
            f"data.template {template!r} cannot be read: {str(error).lower()}.", "Write {{ and }} for literal braces."
        ) from None
    names = [name for _, name, _ in parts if name is not None]
    example = r"Name columns in braces, such as 'Q: {question}\nA: {answer}'."
    if not names:
        raise ConfigError(f"data.template {template!r} has no field: every row would be the same text.", example)
    if any(not name.strip() for name in names):
        raise ConfigError(f"data.template {template!r} has a field without a name.", example)
    return Template(text, tuple(parts))
