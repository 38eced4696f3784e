"""Which text trains and which validates: by the hash of whole documents, or by position inside each."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gpt2.corpus.document import Document
from gpt2.errors import DataError

FEW = 20
"""Below this many different documents a share of them is a lottery: then the end of each long one validates."""
LEAST_CUT = 2_000
LEAST_END = 300
"""Characters that a document must have to be cut, and its end: a few words torn from their row judge nothing."""

Side = Literal["train", "validation"]


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a corpus found, document by document.

    Attributes:
        hashes: 64 bits of each document's content, shape (documents,); equal content, equal hash.
        characters: length of each document, shape (documents,).
        text_bytes: UTF-8 bytes of the corpus.
    """

    hashes: NDArray[np.uint64]
    characters: NDArray[np.int64]
    text_bytes: int

    @property
    def duplicates(self) -> int:
        """Documents whose content has occurred before."""
        return len(self.hashes) - len(np.unique(self.hashes))


def scan(documents: Iterable[Document]) -> Scan:
    """Read a corpus once: 16 bytes are kept of each document."""
    hashes, characters, text_bytes = [], [], 0
    for document in documents:
        digest, length = hashlib.blake2b(digest_size=8), 0
        for piece in document.pieces:
            encoded = piece.encode("utf-8", "surrogatepass")
            digest.update(encoded)
            text_bytes += len(encoded)
            length += len(piece)
        hashes.append(int.from_bytes(digest.digest(), "little"))
        characters.append(length)
    return Scan(np.array(hashes, dtype=np.uint64), np.array(characters, dtype=np.int64), text_bytes)


@dataclass(frozen=True, slots=True)
class Split:
    """A rule that gives each piece of each document a side.

    Attributes:
        share: of the documents or characters that validate.
        threshold: whole documents with a content hash up to this validate, so equal ones are always on one side.
        longest: characters up to which a document is kept whole; of a longer one the last `share` validates.
    """

    share: float
    threshold: int
    longest: int

    def parts(self, document: Document, content_hash: int, characters: int) -> Iterator[tuple[Side, Iterable[str]]]:
        """The sides of a document with their text."""
        if characters > self.longest:
            cut = int(characters * (1 - self.share))
            yield "train", _between(document.pieces, 0, cut)
            yield "validation", _between(document.pieces, cut, characters)
        else:
            yield ("validation" if content_hash <= self.threshold else "train"), document.pieces


ALL_TRAIN = Split(0.0, -1, 2**63)
ALL_VALIDATE = Split(1.0, 2**64, 2**63)


def plan_split(found: Scan, kind: Literal["auto", "documents", "position"], share: float) -> Split:
    """Decide how to split a corpus.

    By itself: whole documents, where there are at least 20 different ones. A document longer than half of the
    validation part is split by position even then: one novel among notes would make either part a fragment. Of fewer
    documents each long one is split by position. None is that is too short to be cut; a single document always is.

    Raises:
        DataError: whole documents are asked for, and there is only one.
    """
    by_position = Split(share, -1, 0)
    if kind == "position":
        return by_position
    longest = 2**63
    if kind == "auto":
        many = len(np.unique(found.hashes)) >= FEW
        half = int(found.characters.sum() * share / 2) if many else 0
        longest = max(half, LEAST_CUT, math.ceil(LEAST_END / share))
    distinct = np.unique(found.hashes[found.characters <= longest])  # sorted
    if kind == "auto" and (found.characters > longest).any():
        validating = min(len(distinct) - 1, round(share * len(distinct)))
        return Split(share, int(distinct[validating - 1]) if validating > 0 else -1, longest)
    if len(distinct) < 2 and kind == "auto":
        return by_position
    if len(distinct) < 2:
        raise DataError(
            f"There is only {len(distinct)} document, so whole documents cannot be kept for validation.",
            "Leave out --data.split, give more documents, or name a file with --data.validation-source.",
        )
    validating = min(len(distinct) - 1, max(1, round(share * len(distinct))))
    return Split(share, int(distinct[validating - 1]), longest)


def describe(found: Scan, split: Split) -> str:
    """How a corpus was split, in words."""
    cut = int((found.characters > split.longest).sum())
    if cut == len(found.characters):
        return "the last part of each document"
    if cut and split.threshold < 0:
        return f"the last part of the {cut:,} longest documents; the others train"
    whole = "whole documents, chosen by the hash of their content"
    return f"{whole}; of the {cut:,} longest the last part (these count on both sides)" if cut else whole


def _between(pieces: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """The characters [start, stop) of pieces laid end to end."""
    position = 0
    for piece in pieces:
        end = position + len(piece)
        if end > start and position < stop:
            yield piece[max(0, start - position) : stop - position]
        position = end


def summary_of_lengths(characters: NDArray[np.int64]) -> dict[str, int]:
    """Shortest, median and longest document, in characters."""
    if not len(characters):
        return {"shortest": 0, "median": 0, "longest": 0}
    return {
        "shortest": int(characters.min()),
        "median": int(np.median(characters)),
        "longest": int(characters.max()),
    }
