"""What the user sees: one rich console on stderr, so that stdout carries only results (generated text, JSON)."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


@functools.cache
def console() -> Console:
    """The console for everything that is not a result. Made at first use, never at import.

    Where several processes train together, only the first speaks.
    """
    return Console(stderr=True, highlight=False, quiet=_rank() != "0")


def _rank() -> str:
    return os.environ.get("RANK", "0")


def say(message: str, style: str = "") -> None:
    """Print a line as it stands: no markup is read from it, so a user's text cannot become formatting."""
    _line(console(), Text(message, style=style))


def warn(message: str) -> None:
    """Print a warning: something will work, but probably not as wished."""
    _line(console(), Text.assemble(("Warning: ", "bold yellow"), message))


def fail(message: str, fix: str = "") -> None:
    """Print an error: what happened, and below it what to do. Every process may."""
    loud = Console(stderr=True, highlight=False)
    who = "Error: " if _rank() == "0" else f"Error in process {_rank()}: "
    _line(loud, Text.assemble((who, "bold red"), message))
    if fix:
        _line(loud, Text(fix))


def _line(where: Console, line: Text) -> None:
    """Wrapped at words on a terminal; as it is in a log, where somebody will search for it."""
    where.print(line, soft_wrap=not where.is_terminal)


def table(title: str, rows: list[tuple[str, ...]], header: tuple[str, ...]) -> None:
    """Print a table; the first column is left-aligned, the others right-aligned."""
    drawn = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for position, name in enumerate(header):
        drawn.add_column(name, justify="left" if position == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console().print(drawn)


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
