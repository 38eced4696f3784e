"""Who speaks, as ids: four marks behind the ids of a plain tokenizer. No text is ever encoded as one of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.layout import CONFIG_FILE, TOKENIZER_FILE, added_token

ROLE_SPELLINGS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""How other tools see the marks, in the order of their ids. Typed by somebody, these are plain characters here."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The ids that open a message of each speaker, and the one that ends every message."""

    system: int
    user: int
    assistant: int
    end: int

    @property
    def all(self) -> tuple[int, int, int, int]:
        """All four, in the order of `ROLE_SPELLINGS`."""
        return self.system, self.user, self.assistant, self.end


class RoleTokenizer:
    """A plain tokenizer and the four marks behind its ids; see `Tokenizer` for its methods.

    Args:
        plain: encodes and decodes all text.
    """

    def __init__(self, plain: Tokenizer) -> None:
        assert not isinstance(plain, RoleTokenizer), "it has its marks already"
        self.plain = plain
        self.name = plain.name
        self.end_of_text = plain.end_of_text
        self.roles = Roles(*range(plain.vocab_size, plain.vocab_size + len(ROLE_SPELLINGS)))
        self.vocab_size = plain.vocab_size + len(ROLE_SPELLINGS)

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, shape (n,), dtype uint32: those of the plain tokenizer."""
        return self.plain.encode(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of ids in [0, vocab_size); marks give nothing."""
        return self.plain.decode_bytes([i for i in ids if i < self.plain.vocab_size])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids in [0, vocab_size); marks give nothing."""
        return self.plain.decode([i for i in ids if i < self.plain.vocab_size])

    def to_files(self, context_length: int) -> dict[str, dict[str, Any]]:
        """File name → JSON value: the plain tokenizer's, with the marks; a message's end ends a text, too."""
        files = self.plain.to_files(context_length)
        marks = [added_token(i, spelling) for i, spelling in zip(self.roles.all, ROLE_SPELLINGS, strict=True)]
        files[TOKENIZER_FILE]["added_tokens"] = [*files[TOKENIZER_FILE]["added_tokens"], *marks]
        files[CONFIG_FILE]["eos_token"] = ROLE_SPELLINGS[-1]
        return files

    def fingerprint(self) -> str:
        """The plain tokenizer's: all text is encoded alike, and the marks follow from the number of its ids."""
        return self.plain.fingerprint()


def roles_of(tokenizer: Tokenizer) -> Roles | None:
    """The marks of a tokenizer, if it has them."""
    return tokenizer.roles if isinstance(tokenizer, RoleTokenizer) else None
