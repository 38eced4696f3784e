"""Where a text comes from: spans that stand word for word in the training text, and the passages most alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2.corpus.shards import TokenShards

BLOCK = 2**21
"""Tokens of the training text that are looked at at once."""
VERBATIM = 30
"""Characters that a span has at least, to count as word for word: less is any text's phrase."""
WORD = 6
"""Characters of about a word, space included: what passages are compared by."""
PASSAGE = 128
"""Tokens of a passage: a document, or where it is longer, such a part of it."""
K1, B = 1.2, 0.75
"""Of BM25 (Robertson & Zaragoza 2009, section 3.2): how soon repetition stops to count, and how much length does."""


class Span(NamedTuple):
    """Tokens [start, stop) of a text that stand at `place` in the training tokens."""

    start: int
    stop: int
    place: int


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of the training text."""

    start: int
    stop: int
    """Its tokens, [start, stop) of the part."""
    document: int
    """Number of its document, from 0, in the order of the sources."""
    score: float
    """BM25 with the text that was asked about; larger is nearer."""


def shortest_span(text: str, tokens: int) -> int:
    """Tokens of a text of so many tokens that make up VERBATIM characters."""
    return max(4, round(VERBATIM * tokens / max(1, len(text))))


def tokens_of_a_word(text: str, tokens: int) -> int:
    """Tokens of a text of so many tokens that make up about a word: 1 of large vocabularies, 6 of characters."""
    return max(1, round(WORD * tokens / max(1, len(text))))


def verbatim_spans(ids: Sequence[int], shards: TokenShards, least: int) -> list[Span]:
    """The longest spans of a text that stand in the training tokens, none inside another, in order.

    Every `least` tokens of the training text have a hash; places whose hash is one of the text's are compared token
    by token and then followed as far as both agree.

    Args:
        ids: the text, T tokens.
        shards: the training part, N tokens; is read once from its beginning to its end.
        least: tokens of a span at least, from 1.
    """
    text = np.asarray(ids, dtype=np.int64)
    if len(text) < least:
        return []
    wanted = _hashes(text, least)
    order = np.argsort(wanted, kind="stable")
    longest: dict[int, Span] = {}
    for begin in range(0, len(shards) - least + 1, BLOCK):
        block = shards.read(begin, min(begin + BLOCK + least - 1, len(shards))).astype(np.int64)
        hashes = _hashes(block, least)
        for place in np.flatnonzero(np.isin(hashes, wanted)):
            low, high = (np.searchsorted(wanted[order], hashes[place], side) for side in ("left", "right"))
            for start in order[low:high].tolist():
                known = longest.get(start)
                if known is not None and not _longer(text, shards, known, begin + int(place)):
                    continue
                length = _agree(text[start:], shards, begin + int(place), least)
                if length >= least and (known is None or start + length > known.stop):
                    longest[start] = Span(start, start + length, begin + int(place))
    spans: list[Span] = []
    for start in sorted(longest):
        if not spans or longest[start].stop > spans[-1].stop:
            spans.append(longest[start])
    return spans


def closest(ids: Sequence[int], shards: TokenShards, size: int, most: int = 3) -> list[Passage]:
    """The passages of the training text that have most in common with a text, by BM25.

    Args:
        ids: the text.
        shards: the training part; is read once from its beginning to its end.
        size: tokens on end that are compared as one, from 1: about a word.
        most: passages to give.
    """
    if len(ids) < size or len(shards) < size:
        return []
    asked = np.unique(_hashes(np.asarray(ids, dtype=np.int64), size))
    borders, documents = _borders(shards)
    number = len(borders) - 1
    pairs: list[np.ndarray] = []  # (passage, what was asked) of each place where that stands, as one number
    for begin in range(0, len(shards) - size + 1, BLOCK):
        block = shards.read(begin, min(begin + BLOCK + size - 1, len(shards))).astype(np.int64)
        hashes = _hashes(block, size)
        which = np.searchsorted(asked, hashes).clip(max=len(asked) - 1)
        places = np.flatnonzero(asked[which] == hashes)
        passage = np.searchsorted(borders, places + begin, side="right") - 1
        pairs.append(passage * len(asked) + which[places])
    found, counts = np.unique(np.concatenate(pairs), return_counts=True)
    passage, term = found // len(asked), found % len(asked)
    holding = np.bincount(term, minlength=len(asked))  # passages that hold each
    rarity = np.log1p((number - holding + 0.5) / (holding + 0.5))
    lengths = np.diff(borders)
    tempered = counts + K1 * (1 - B + B * lengths[passage] / lengths.mean())
    scores = np.bincount(passage, rarity[term] * counts * (K1 + 1) / tempered, minlength=number)
    best = np.argsort(-scores, kind="stable")[:most].tolist()
    return [
        Passage(int(borders[one]), int(borders[one + 1]), int(documents[one]), float(scores[one]))
        for one in best
        if scores[one] > 0
    ]


def document_at(shards: TokenShards, place: int) -> int:
    """Number of the document that a token of the part belongs to, from 0."""
    return int(np.searchsorted(shards.document_ends(), place, side="right"))


def _hashes(ids: np.ndarray, size: int) -> np.ndarray:
    """A number for each `size` ids on end, shape (len(ids) - size + 1,): the same for the same ids."""
    with np.errstate(over="ignore"):
        hashes = np.zeros(len(ids) - size + 1, dtype=np.uint64)
        for place in range(size):
            hashes = (hashes + ids[place : place + len(hashes)].astype(np.uint64) + np.uint64(1)) * np.uint64(
                0x9E3779B97F4A7C15
            )
            hashes ^= hashes >> np.uint64(29)
    return hashes


def _agree(text: np.ndarray, shards: TokenShards, place: int, least: int) -> int:
    """How many tokens of a text stand at a place of the training tokens; 0 if fewer than `least`."""
    there = shards.read(place, min(place + len(text), len(shards))).astype(np.int64)
    unlike = np.flatnonzero(there != text[: len(there)])
    length = int(unlike[0]) if len(unlike) else len(there)
    return length if length >= least else 0


def _longer(text: np.ndarray, shards: TokenShards, known: Span, place: int) -> bool:
    """Whether more of a text than is known may stand at a place: one token tells most that not."""
    there = place + known.stop - known.start
    return known.stop < len(text) and there < len(shards) and shards.read(there, there + 1)[0] == text[known.stop]


def _borders(shards: TokenShards) -> tuple[np.ndarray, np.ndarray]:
    """Where passages begin, and the end of the last, shape (P + 1,); and the document of each, shape (P,).

    The mark behind a document counts as its last token.
    """
    ends = shards.document_ends().astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])  # behind the mark that stands between two
    parts = np.maximum(1, -(-(ends - starts) // PASSAGE))  # of each document
    documents = np.repeat(np.arange(len(ends)), parts)
    within = np.arange(len(documents)) - np.repeat(np.cumsum(parts) - parts, parts)
    return np.append(starts[documents] + within * PASSAGE, ends[-1] if len(ends) else 0), documents
