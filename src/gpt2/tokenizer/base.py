"""What every tokenizer can do."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

END_OF_TEXT = "<|endoftext|>"
"""The spelling of the mark between documents. In text that is encoded it is plain characters, never the mark."""


class Tokenizer(Protocol):
    """Text to ids and back. `decode(encode(text)) == text` for every text a tokenizer can spell.

    What is encoded is always plain text: no spelling in it becomes a special id. Special ids are set by the program.
    """

    name: str
    """As on the command line: gpt2, char, bpe:4096."""
    vocab_size: int
    """Number of ids, special ones included; every id is in [0, vocab_size)."""
    end_of_text: int
    """The id that stands between documents: the last one, unless marks of speakers follow (`tokenizer/roles.py`)."""

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, shape (n,), dtype uint32, maybe read-only. A lone surrogate counts as U+FFFD."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of ids in [0, vocab_size); may begin or end within a character. Special ids give nothing."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Special ids give nothing."""
        ...

    def to_files(self, context_length: int) -> dict[str, dict[str, Any]]:
        """File name → JSON value, in the form that `transformers.AutoTokenizer` reads.

        Args:
            context_length: the most tokens that the model beside it sees at once (`model_max_length`).
        """
        ...

    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ whenever any text could encode differently."""
        ...


class Trainer(Protocol):
    """Makes a tokenizer from text."""

    def __call__(self, texts: Iterator[str]) -> Tokenizer:
        """Train on pieces of text, each read once."""
        ...


def well_formed(text: str) -> str:
    """The text with surrogate pairs joined into characters and lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def cannot_spell(tokenizer: Tokenizer, text: str) -> str:
    """What the model will not see of a text, in words; empty if it will see all of it."""
    lost = [c for c in dict.fromkeys(text) if tokenizer.decode(tokenizer.encode(c).tolist()) != c]
    if not lost:
        return ""
    return (
        f"The {tokenizer.name} tokenizer cannot spell {', '.join(map(repr, lost[:10]))}{' …' * (len(lost) > 10)}: "
        "the training text had no such character, and the model sees a mark for the unknown in its place."
    )


def fingerprint_of(kind: str, tokens: Iterable[bytes]) -> str:
    """16 hexadecimal digits for a way of encoding (`kind`) and its tokens in the order of their ids."""
    spelled = b"".join(len(token).to_bytes(4, "little") + token for token in tokens)  # lengths: no two lists join alike
    return hashlib.sha256(kind.encode() + b"\0" + spelled).hexdigest()[:16]
