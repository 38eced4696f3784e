"""Guessing how a text goes on: as it did when it last said the same (Saxena 2023, "prompt lookup decoding").

A processor reads four tokens in little more time than one, so a guess costs little. It never changes a text: what the
model says behind each guessed token is used only if the token is the one that was chosen without the guess (Leviathan
et al. 2023, "speculative decoding").
"""

from collections.abc import Sequence

PAIR = 2
"""Ids at the end of a text that are looked up in it."""
TOKENS = 8
"""Read in a step at most for a guess to be added; beyond that each costs as much as it can win."""
LEAST = 0.25
"""Trust that a guess needs for each text of the step: the more write, the less a step is shortened by one of them."""
SHORT, LONG, SURE = 3, 7, 0.75
"""Ids of a guess, of one that is trusted, and the trust that makes it one: pieces of 4 and of 8 fill the registers."""
FIRST, MEMORY = 0.3, 16
"""Trust in a text that has not repeated itself yet, and the look-ups that trust goes back to, about."""


class Draft:
    """A text so far, and what may come next.

    Every look-up is compared with what the text then says, in the prompt, too, and if nobody asked for it: that costs
    nothing. Where they differ too often there are no guesses, until they agree again.

    Args:
        ids: of the text.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.trust = FIRST
        """About the share of look-ups that were right of late."""
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # a pair → the place behind it, where it stands last
        self._source: int | None = None  # the place behind an earlier pair like the last one
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Go on with the text."""
        if self._source is not None:
            self.trust += ((self._ids[self._source] == token) - self.trust) / MEMORY
        self._ids.append(token)
        pair = tuple(self._ids[-PAIR:])
        self._source = self._behind.get(pair)
        self._behind[pair] = len(self._ids)

    def guess(self, texts: int, most: int) -> list[int]:
        """The ids that may come next, so many that reading them is worth it; often none.

        Args:
            texts: that are written in the same step.
            most: ids, 0 or more.
        """
        if self._source is None or self.trust < LEAST * texts:
            return []
        span = self._ids[self._source : self._source + LONG]
        # A text that goes in circles is guessed beyond its own end.
        return [span[place % len(span)] for place in range(min(most, LONG if self.trust >= SURE else SHORT))]
