"""Beginnings that texts have in common: read once, and copied by the others."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

LEAST = 16
"""Tokens that a prompt has in common with another text at least, to be copied from it; fewer are read as fast."""


class Loan(NamedTuple):
    """The beginning of a text that another row has, or will have."""

    length: int
    """Tokens."""
    there: int
    """How many of them have been read."""
    row: int


def best_loan(
    beginning: Sequence[int], own: int, texts: Sequence[Sequence[int]], read: Sequence[int], being_read: Collection[int]
) -> Loan:
    """The most that other rows have of a text, or will have soon; of equals what is there.

    Args:
        beginning: ids of the text, as many as may be copied.
        own: its row.
        texts: by row.
        read: how many ids of each row's text have been read.
        being_read: rows that are read before this one. What others have not read will not be there in time.
    """
    best = Loan(0, 0, own)
    for row, text in enumerate(texts):
        alike = common(text, beginning)
        there = min(alike, read[row])
        loan = Loan(alike if row in being_read else there, there, row)
        if row != own and loan[:2] > best[:2]:
            best = loan
    return best


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
