"""From ids to text while it is being written: whole characters only, up to a stop string, safe to print."""

import codecs
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from gpt2.errors import ConfigError
from gpt2.tokenizer.base import Tokenizer


class TextStream:
    """Bytes in as tokens come, certain text out: whole characters only, up to a stop string.

    UTF-8 may be cut anywhere: what is incomplete waits for the rest. Bytes that are no UTF-8, and at the end bytes
    whose rest never came, become U+FFFD. An end that may yet become a stop string is held back; of several stop
    strings, the one that is complete first counts.

    Args:
        stop: strings that end the text; neither they nor anything after them is given.

    Raises:
        ConfigError: a stop string is empty.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ConfigError("A stop string is empty, so there would be no text.", "Give at least one character.")
        self.stop = stop
        self.stopped = False
        """Whether a stop string has come; there is no text after it."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""

    def feed(self, part: bytes) -> str:
        """The text that these bytes make certain; may be empty."""
        return self._certain(self._decoder.decode(part))

    def end(self) -> str:
        """The rest, once no more bytes will come."""
        text = self._certain(self._decoder.decode(b"", final=True))
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _certain(self, piece: str) -> str:
        if self.stopped or not piece:
            return ""
        text, self._held = self._held + piece, ""
        ends = [(found + len(word), found) for word in self.stop if (found := text.find(word)) >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)[1]]
        certain = len(text) - max((_overlap(text, word) for word in self.stop), default=0)
        self._held = text[certain:]
        return text[:certain]


def text_pieces(ids: Iterable[int], tokenizer: Tokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of ids, piece by piece, as soon as it is certain; no piece is empty. Nothing is read after a stop.

    Args:
        ids: tokens as they come.
        tokenizer: what they mean.
        stop: strings that end the text; neither they nor anything after them is given.

    Raises:
        ConfigError: a stop string is empty.
    """
    stream = TextStream(stop)
    for token in ids:
        if text := stream.feed(tokenizer.decode_bytes([token])):
            yield text
        if stream.stopped:
            return
    if text := stream.end():
        yield text


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
