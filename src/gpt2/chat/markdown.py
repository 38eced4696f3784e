"""Markdown while it is being written: what is complete stays on the terminal, what is not is drawn again."""

import contextlib
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TextIO

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)


class _Rendered(Markdown):
    """Markdown as a chat has it: line ends are kept, HTML is text, links are not live."""

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = text
        parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self.parsed = parser.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


class _End:
    """The last lines of Markdown, as many as a terminal has room for: what has left it could not be drawn again."""

    def __init__(self, text: str) -> None:
        self._whole = _Rendered(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._whole, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 1) :]:
            yield from line
            yield Segment.line()


class MarkdownStream:
    """Shows pieces of Markdown as they come. Used as a context; at its end all that was fed stands there.

    Args:
        out: a terminal.
    """

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, highlight=False)
        self._pending = ""
        self._live: Live | None = None

    def feed(self, piece: str) -> None:
        """Show a piece; it must be printable."""
        self._pending += piece
        while (end := complete(self._pending)) is not None:
            block, self._pending = self._pending[:end], self._pending[end:]
            self._settle(block)
        if not self._pending.strip():
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        self._live.update(_End(self._pending), refresh=True)

    def _settle(self, block: str) -> None:
        """Print a block for good, in place of what is drawn of it."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if block.strip():
            self._console.print(_Rendered(block))
            self._console.print()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle(self._pending)
        self._pending = ""


@contextlib.contextmanager
def unechoed(terminal: TextIO) -> Iterator[None]:
    """While the block runs, keys are not shown: a ^C would move the cursor under what is drawn. They are not lost."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        before = termios.tcgetattr(terminal)
    except (OSError, ValueError, termios.error):  # it only says that it is a terminal
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def complete(text: str) -> int | None:
    """Where the first block of a text ends that nothing after it can change; None while there is none.

    A block ends at an empty line, outside of fenced code.
    """
    at = 0
    while (at := text.find("\n\n", at)) >= 0:
        at += 2
        if len(_FENCE.findall(text[:at])) % 2 == 0 and text[:at].strip():
            return at
    return None
