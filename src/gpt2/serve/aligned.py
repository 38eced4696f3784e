"""Tokens beside the text they spell: each is reported when its text is certain, and none whose text never comes."""

import codecs
from typing import NamedTuple

from gpt2.generation.request import Delta, Token


class Placed(NamedTuple):
    """A token, and the character of the answer at which it begins; or within which."""

    token: Token
    offset: int


class Aligned:
    """The tokens of one answer, delta by delta.

    An end that may yet become a stop string is held back. Its tokens are so, too: where it does become one, there is no
    text that they belong to.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._spelled = 0  # characters that the tokens spell
        self._told = 0  # characters of the answer
        self._held: list[Placed] = []

    def due(self, delta: Delta) -> list[Placed]:
        """The tokens whose text has become certain."""
        for token in delta.tokens:
            self._held.append(Placed(token, self._spelled))
            self._spelled += len(self._decoder.decode(token.bytes))
        self._told += len(delta.text)
        held, self._held = self._held, []
        if delta.finish is not None and self._spelled + len(self._decoder.decode(b"", final=True)) <= self._told:
            return held  # nothing was cut off: those that spell nothing belong to the answer, too
        due = [placed for placed in held if placed.offset < self._told]
        self._held = held[len(due) :]
        return due
