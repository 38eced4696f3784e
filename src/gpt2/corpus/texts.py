"""Bytes to characters: a file's encoding is found and proven over the whole file, and its text read in pieces."""

import codecs
import difflib
import encodings.aliases
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import charset_normalizer

from gpt2.corpus.document import in_pieces, reading
from gpt2.errors import ConfigError, DataError

_BLOCK = 2**20  # bytes read at a time, and bytes in the sample from which an encoding is guessed
_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Not guessed: EBCDIC and UTF-7, which no text file of today uses but which fit many a binary one, and UTF-16 or
# UTF-32 without a byte-order mark, which fit nearly anything.
_NEVER_GUESSED = [
    *("utf_7", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"),
    *("cp037", "cp273", "cp424", "cp500", "cp875", "cp1026", "cp1140"),
]
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_SHARE = 0.01
_CONTROL_SAMPLE = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Examined:
    """What one pass over a file's bytes tells."""

    encoding: str
    """Name of the codec that decodes every byte of it, and takes off a byte-order mark."""
    size: int
    """Bytes."""
    characters: int
    sha256: str
    blank: bool
    """Whether it holds nothing but white space."""
    detected: bool
    """Whether the encoding is a guess: neither UTF-8, nor marked in the file, nor set by the user."""


class _UndecodableError(Exception):
    """A byte that an encoding does not allow, at an offset in the file."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


def known_encoding(name: str) -> str:
    """The codec's own name for an encoding.

    Raises:
        ConfigError: there is none of that name; the nearest ones are named.
    """
    try:
        codec = codecs.lookup(name)
        # Base64 and its like turn bytes into bytes; the others are for names on a network, or always fail.
        if codec._is_text_encoding and codec.name not in ("idna", "punycode", "undefined"):  # pyright: ignore
            return codec.name
    except (LookupError, ValueError):
        pass
    aliases = encodings.aliases.aliases
    plain = re.sub(r"[\s-]+", "_", name.lower())
    near = difflib.get_close_matches(plain, sorted({*aliases, *aliases.values()}), n=3, cutoff=0.6)
    meant = f"Did you mean {' or '.join(name.replace('_', '-') for name in near)}?" if near else ""
    raise ConfigError(
        f"data.encoding {name!r} is no character encoding.", meant or "Usual ones: utf-8, cp1252, utf-16, shift-jis."
    )


def examine(path: Path, encoding: str | None = None) -> Examined:
    """Read a file once, to its end, and tell what it holds.

    Without an `encoding`, a byte-order mark decides, then UTF-8 if all bytes are UTF-8, then the likeliest encoding of
    the bytes around the first one that is not, provided that it decodes the whole file.

    Raises:
        ConfigError: the encoding is unknown.
        DataError: the file cannot be read, does not decode, or is no text; the byte is named.
    """
    with reading(path), path.open("rb") as file:
        head = file.read(4)
    marked = next((name for mark, name in _BOMS if head.startswith(mark)), None)
    forced = known_encoding(encoding) if encoding is not None else None
    if forced is not None and marked is not None and forced.split("-")[:2] == marked.split("-")[:2]:
        forced = marked  # the same encoding, and its mark is no text
    given = forced or marked
    try:
        return _scan(path, given or "utf-8", detected=False)
    except _UndecodableError as error:
        offset = error.offset
    if given is not None:
        why = "as data.encoding says" if forced else "as its byte-order mark says"
        raise DataError(
            f"{path} is not {given} {why}: byte {offset:,} does not decode.",
            "Name its real encoding with --data.encoding, or leave that out to have it detected."
            if forced
            else "The file is damaged, or cut off: save it again as UTF-8.",
        )
    guess = _guess(path, offset)
    try:
        return _scan(path, guess, detected=True)
    except _UndecodableError as error:
        raise DataError(
            f"{path} is not UTF-8 from byte {offset:,} on, and not {guess} from byte {error.offset:,} on.",
            "It may be damaged: save it again as UTF-8, or name its encoding with --data.encoding.",
        ) from None


def _scan(path: Path, encoding: str, detected: bool) -> Examined:
    """Decode the whole file, a block at a time, and count what it holds."""
    decoder = codecs.getincrementaldecoder(encoding)()
    digest = hashlib.sha256()
    size = lines = characters = controls = looked_at = 0
    blank = True
    with reading(path), path.open("rb") as file:
        while True:
            block = file.read(_BLOCK)
            digest.update(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:  # its object ends where the block does, and may begin before it
                raise _UndecodableError(size + len(block) - len(error.object) + error.start) from None
            except UnicodeError:  # UTF-16 or UTF-32 that should begin with a byte-order mark and does not
                raise _UndecodableError(0) from None
            if (null := text.find("\0")) >= 0:
                at = size + (block.find(b"\0") if b"\0" in block else 0)
                raise _binary(path, f"a null at byte {at:,}, line {lines + 1 + text.count(chr(10), 0, null):,}")
            if looked_at < _CONTROL_SAMPLE:
                controls += len(_CONTROL.findall(text))
                looked_at += len(text)
            size += len(block)
            lines += text.count("\n")
            characters += len(text)
            blank = blank and not text.strip()
            if not block:
                break
    if controls > max(_CONTROL_SHARE * looked_at, 3):
        raise _binary(path, f"{controls:,} control characters among the first {looked_at:,}")
    return Examined(encoding, size, characters, digest.hexdigest(), blank, detected)


def _guess(path: Path, offset: int) -> str:
    """The likeliest encoding of the bytes around the first one that is not UTF-8.

    Raises:
        DataError: no encoding makes text of them.
    """
    with reading(path), path.open("rb") as file:
        start = max(offset - _BLOCK // 2, 0)
        file.seek(start)
        sample = file.read(_BLOCK)
        complete = start + len(sample) >= path.stat().st_size
    if b"\0" in sample:
        raise _binary(path, f"a null at byte {start + sample.index(bytes(1)):,}")
    # UTF-8 characters of several bytes hardly ever arise by chance: a file with many of them is UTF-8 with a damaged
    # spot, and any other encoding would turn all of them into nonsense.
    decoded = sample.decode("utf-8", errors="replace")
    damaged = decoded.count("\ufffd")
    if sum(character > "\x7f" for character in decoded) - damaged > 9 * damaged:
        raise DataError(
            f"{path} is UTF-8, but damaged: byte {offset:,} does not decode.",
            "Save it again, or drop the damaged bytes: iconv -c -f utf-8 -t utf-8 OLD > NEW.",
        )
    # Whole lines only: half a character at either end would rule out the right encoding.
    first = sample.find(b"\n") + 1 if start else 0
    last = len(sample) if complete else sample.rfind(b"\n") + 1 or len(sample)
    if not first <= offset - start < last:
        first, last = 0, len(sample)
    found = list(charset_normalizer.from_bytes(sample[first:last], cp_exclusion=_NEVER_GUESSED))
    if not found:
        raise _binary(path, f"byte {offset:,} is not UTF-8, and no other encoding makes text of it")
    best = found[0]
    # Western European text is by far the commonest that is not UTF-8, and a few accents are too little to tell it
    # from Central European or Baltic: where it reads as well as the best, it is taken.
    western = any(
        "cp1252" in match.could_be_from_charset and match.coherence >= best.coherence - 0.05 for match in found
    )
    return "cp1252" if western else best.encoding.replace("_", "-")


def _binary(path: Path, sign: str) -> DataError:
    return DataError(
        f"{path} looks binary, not text: {sign}.",
        "Export it as plain UTF-8 text; or, if it is text, name its encoding with --data.encoding (such as utf-16-le).",
    )


@dataclass(frozen=True, slots=True)
class TextPieces:
    """The text of a file in pieces, read anew by each iteration. Line ends become a single newline character."""

    path: Path
    encoding: str

    def __iter__(self) -> Iterator[str]:
        """Yield the pieces.

        Raises:
            DataError: the file can no longer be read.
        """
        with reading(self.path), self.path.open(encoding=self.encoding, newline=None) as file:
            yield from in_pieces(iter(lambda: file.read(_BLOCK), ""))
