"""What every source gives: a document, whose text comes in pieces so that no file has to fit in memory."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2.errors import DataError

PIECE = 4 * 2**20
"""Characters that a piece should have at most."""
PIECE_CAP = 16 * 2**20
"""Characters at which a piece is cut wherever it stands, as no safe place was found."""

# GPT-2's pattern never puts a character and a space after it in one pre-token, and it looks ahead only from within
# white space. So a lone space or newline between two other characters always begins a pre-token of its own or of the
# next word: cutting before it changes no id. Within a run of white space a cut can: there the pattern looks ahead.
_SAFE = re.compile(r"(?<=\S)[ \n](?=\S)")
_WINDOW = 2**16


@dataclass(frozen=True, slots=True)
class Document:
    """One text that the model sees as a whole, between two end-of-text marks."""

    origin: str
    """Where it comes from, as the user would recognise it: a path, or the name of an embedded text."""
    row: int | None
    """For a table, the number of the record, from 1, the header not counted."""
    pieces: Iterable[str]
    """Non-empty strings that joined are the text. Iterating anew reads anew."""

    @property
    def text(self) -> str:
        """The whole text: for rows and small files."""
        return "".join(self.pieces)


def in_pieces(blocks: Iterable[str], target: int = PIECE, cap: int = PIECE_CAP) -> Iterator[str]:
    """Regroup text into pieces whose borders do not depend on those of the blocks, and change no GPT-2 token.

    A piece has at most `target` characters if there is a safe place among them, else it ends at the first safe place
    after, and at `cap` characters in any case. The last piece may have one character more.
    """
    held = ""
    for block in blocks:
        held += block
        while (place := _place(held, target, cap)) is not None:
            yield held[:place]
            held = held[place:]
    if held:
        yield held


def _place(text: str, target: int, cap: int) -> int | None:
    """Where to cut a text of which more may follow; None while that cannot be known."""
    if len(text) < target + 2:  # the character after the one at `target` decides whether that place is safe
        return None
    for high in range(target, 0, -_WINDOW):  # from the end, so that long texts cost no more than short ones
        low = max(high - _WINDOW + 1, 1)
        places = [match.start() for match in _SAFE.finditer(text, low, high + 2)]
        if places:
            return places[-1]
    if match := _SAFE.search(text, target, cap + 2):
        return match.start()
    return cap if len(text) >= cap + 2 else None


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what the system refused while a file is read.

    Raises:
        DataError: the file is gone, may not be read, or no longer decodes as it did when it was first looked at.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is gone.", "Put it back, or leave it out of the sources.") from None
    except PermissionError:
        raise DataError(f"{path} may not be read: permission denied.", "Change its permissions.") from None
    except UnicodeError:
        raise DataError(f"{path} changed while it was being read.", "Start again once it is complete.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", "Check the disk, or copy it.") from error
