"""What the user sees: a rich console on stderr for all but results, and one on stdout for results that are drawn."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


class _Log(Console):
    """A console whose reader may go away, as a pager that is left, or whose disk may be full: the work goes on."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print, where that is possible."""
        with contextlib.suppress(OSError):
            super().print(*objects, **how)

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on; rich itself would end the program."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


@functools.cache
def console() -> Console:
    """The console for everything that is not a result. Made at first use, never at import.

    Where several processes train together, only the first speaks.
    """
    return _Log(stderr=True, highlight=False, quiet=_rank() != "0")


@functools.cache
def results() -> Console:
    """The console for results that are drawn: stdout. Made at first use."""
    return Console(highlight=False)


def _rank() -> str:
    return os.environ.get("RANK", "0")


def counted(number: int, noun: str) -> str:
    """So many of something: 1 layer, 2 layers, 1,500 steps."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def say(message: str, style: str = "") -> None:
    """Print a line as it stands: no markup is read from it, so a user's text cannot become formatting."""
    _line(console(), Text(message, style=style))


def listing(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and, beside them, what they mean; a meaning of several lines stays in its column."""
    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(no_wrap=True)
    for name, meaning in rows:
        drawn.add_row(Text(f"  {name}"), Text(meaning))
    console().print(drawn)


def warn(message: str) -> None:
    """Print a warning: something will work, but probably not as wished."""
    _line(console(), Text.assemble(("Warning: ", "bold yellow"), message))


@functools.cache
def warn_once(message: str) -> None:
    """The same, the first time only."""
    warn(message)


def fail(message: str, fix: str = "") -> None:
    """Print an error: what happened, and below it what to do. Every process may."""
    loud = _Log(stderr=True, highlight=False)
    who = "Error: " if _rank() == "0" else f"Error in process {_rank()}: "
    _line(loud, Text.assemble((who, "bold red"), message))
    if fix:
        _line(loud, Text(fix))


def _line(where: Console, line: Text) -> None:
    """Wrapped at words on a terminal; as it is in a log, where somebody will search for it."""
    where.print(line, soft_wrap=not where.is_terminal)


def table(
    title: str,
    rows: list[tuple[str, ...]],
    header: tuple[str, ...],
    texts: Collection[str] = (),
    where: Console | None = None,
) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned.

    Args:
        title: stands above it.
        rows: a text for each column.
        header: names of the columns.
        texts: those of them that hold running text: left-aligned, on one line, cut where the terminal ends.
        where: the console; None: that for what is no result.
    """
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for position, name in enumerate(header):
        left = position == 0 or name in texts
        # Where it gets narrow, rich takes from the columns that may be wrapped: those of text, if there are any.
        kept = bool(texts) and name not in texts
        drawn.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=kept)
    for row in rows:
        drawn.add_row(*(_cell(cell, cut=name in texts) for cell, name in zip(row, header, strict=True)))
    (where or console()).print(drawn)


def _cell(text: str, cut: bool) -> Text:
    return Text(text, overflow="ellipsis", no_wrap=True) if cut else Text(text)


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar with time left while the block runs; it is given a function that advances it, with a note if wished.

    Where stderr is no terminal nothing is drawn: a log is no place for a moving bar.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[note]}"),
    )
    drawn = Progress(*columns, console=console(), transient=True, disable=not console().is_terminal)
    with drawn:
        task = drawn.add_task(description, total=total, note="")

        def advance(amount: int, note: str = "") -> None:
            drawn.update(task, advance=amount, note=note)

        yield advance
