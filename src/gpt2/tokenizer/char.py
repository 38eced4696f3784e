"""One id for each character of your text: the smallest vocabulary, for small models and for looking closely."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from gpt2.tokenizer.base import END_OF_TEXT, fingerprint_of, well_formed
from gpt2.tokenizer.layout import tokenizer_files

UNKNOWN = "\ufffd"
"""Stands for every character that the text did not have. Being itself a character, it needs no special spelling."""
_CODE_POINTS = 0x110000
_PIECE = 2**20


class CharTokenizer:
    """Characters to ids; see `Tokenizer` for its methods.

    Args:
        characters: distinct single characters, sorted by code point, without UNKNOWN. Their ids count from 0; then
            come UNKNOWN and the end-of-text mark.
    """

    name = "char"

    def __init__(self, characters: str) -> None:
        assert list(characters) == sorted(set(characters) - {UNKNOWN}), "characters are distinct, sorted, known"
        self.characters = characters
        self.vocab_size = len(characters) + 2
        self.unknown = len(characters)
        self.end_of_text = len(characters) + 1
        self._spellings = dict(enumerate(characters + UNKNOWN))
        self._spellings[self.end_of_text] = ""
        self._id_of = np.full(_CODE_POINTS, self.unknown, dtype=np.uint32)
        self._id_of[_code_points(characters)] = np.arange(len(characters), dtype=np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, shape (n,), dtype uint32. A character not in the vocabulary is UNKNOWN."""
        return self._id_of[_code_points(text)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of ids in [0, vocab_size); end_of_text gives nothing."""
        return self.decode(ids).encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids in [0, vocab_size); end_of_text gives nothing."""
        return "".join([self._spellings[int(i)] for i in ids])

    def to_files(self, context_length: int) -> dict[str, dict[str, Any]]:
        """File name → JSON value: each character is a word of its own, as far as transformers is concerned."""
        spellings = [*self.characters, UNKNOWN, END_OF_TEXT]
        return tokenizer_files(
            self.name,
            self.end_of_text,
            context_length,
            model={
                "type": "WordLevel",
                "vocab": {spelling: i for i, spelling in enumerate(spellings)},
                "unk_token": UNKNOWN,
            },
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            decoder={"type": "Fuse"},
            config={"tokenizer_class": "PreTrainedTokenizerFast"},  # the class that takes tokenizer.json as it is
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ whenever any text could encode differently."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("characters", [character.encode() for character in self.characters])


def train_char(texts: Iterable[str]) -> CharTokenizer:
    """The tokenizer of all characters in pieces of text, each read once and none kept."""
    seen = np.zeros(_CODE_POINTS, dtype=bool)
    for text in texts:
        for start in range(0, len(text), _PIECE):
            seen[_code_points(text[start : start + _PIECE])] = True
    seen[ord(UNKNOWN)] = False
    return CharTokenizer("".join(map(chr, np.flatnonzero(seen))))


def _code_points(text: str) -> np.ndarray:
    """The code points of a text, shape (n,), dtype uint32; lone surrogates are U+FFFD."""
    try:
        data = text.encode("utf-32-le")
    except UnicodeEncodeError:
        data = well_formed(text).encode("utf-32-le")
    return np.frombuffer(data, dtype="<u4")
