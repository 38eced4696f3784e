"""From ids to text while it is being written: whole characters only, up to a stop string, safe to print."""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from gpt2.errors import ConfigError
from gpt2.tokenizer.base import Tokenizer


def text_pieces(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of ids, piece by piece, as soon as it is certain; no piece is empty.

    Args:
        ids: tokens as they come.
        tokenizer: what they mean.
        stop: strings that end the text; neither they nor anything after them is given.

    Raises:
        ConfigError: a stop string is empty.
    """
    return until(whole_characters(tokenizer.decode_bytes([token]) for token in ids), stop)


def whole_characters(parts: Iterable[bytes]) -> Iterator[str]:
    """UTF-8 text from bytes that may be cut anywhere: what is incomplete waits for the rest.

    Bytes that are no UTF-8, and at the end bytes whose rest never came, become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pieces of text up to the first stop string, wherever the text was cut into pieces.

    An end that may yet become a stop string is held back. Of several stop strings, the one that is complete
    first counts.

    Raises:
        ConfigError: a stop string is empty.
    """
    if not all(stop):
        raise ConfigError("A stop string is empty, so there would be no text.", "Give at least one character.")
    held = ""
    for piece in pieces:
        held += piece
        ends = [(found + len(word), found) for word in stop if (found := held.find(word)) >= 0]
        if ends:
            if text := held[: min(ends)[1]]:
                yield text
            return
        certain = len(held) - max((_overlap(held, word) for word in stop), default=0)
        if certain:
            yield held[:certain]
            held = held[certain:]
    if held:
        yield held


def _overlap(text: str, word: str) -> int:
    """How many characters at the end of the text are a beginning of the word, which they do not complete."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)


def printable(text: str) -> str:
    """The text with control characters spelled out, so that none can move the cursor, colour or retitle a terminal.

    Line feeds and tabs stay, carriage returns go. Marks that turn the direction of writing are spelled out, too.
    """
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    """A character as it may be printed."""
    if character in "\n\t":
        return character
    if character == "\r":
        return ""
    turns = unicodedata.bidirectional(character) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    if turns or unicodedata.category(character) == "Cc":
        return character.encode("unicode_escape").decode("ascii")
    return character


def write(text: str, out: TextIO) -> None:
    """Print text at once; what the output's encoding cannot spell becomes a question mark."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding))
    out.flush()
