"""A byte-level BPE: trained on your own text by rustbpe, run by tiktoken.

Text is split by GPT-2's pattern into words, numbers and runs of signs or white space; each is spelled in bytes, and
within each the adjacent pair whose joint token has the lowest id is joined until no pair is a token.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from gpt2.errors import ConfigError
from gpt2.tokenizer.base import END_OF_TEXT, fingerprint_of, well_formed
from gpt2.tokenizer.layout import spell, tokenizer_files

SPLIT = r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
"""GPT-2's split, with possessive repeats where nothing can be given back: the same pieces, found faster."""

# Unicode's White_Space, which is what \s means in SPLIT. (Python's own \s also takes U+001C to U+001F.)
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_WORD_END = re.compile(rf"(?<=[^{_SPACE}])(?=[{_SPACE}])")
PIECE = 2**16
LONGEST = 256
"""Bytes in a token at most (GPT-2's longest has 128): on a megabyte of one letter the merges would never end."""
_LONG_SPACE = re.compile(rf"[{_SPACE}]{{{PIECE},}}+")


def pieces(text: str, size: int = PIECE, long_space: re.Pattern[str] = _LONG_SPACE) -> Iterator[str]:
    """Cut a text where SPLIT cuts it too, so that the ids of the pieces in a row are the ids of the text.

    A piece has about `size` characters: it goes on to the end of its word, and a run without white space stays whole.
    A white-space run that `long_space` matches becomes a piece of its own but for its last character, which SPLIT may
    join to the next word: the engine's backtracking stack overflows from about a million such characters on.
    """
    start = 0
    while start < len(text):
        cut = _WORD_END.search(text, start + size)
        stop = cut.start() if cut else len(text)
        for run in long_space.finditer(text, start, stop):
            if run.end() == len(text):  # nothing follows: SPLIT takes the run whole
                break
            if start < run.start():
                yield text[start : run.start()]
            yield text[run.start() : run.end() - 1]
            start = run.end() - 1
        yield text[start:stop]
        start = stop


class BytePairTokenizer:
    """A byte-level BPE; see `Tokenizer` for its methods. It spells every text.

    Args:
        name: as on the command line.
        tokens: the bytes of each id in the order of ids: the 256 single bytes in any order, then the merges' results
            in the order of merging. The end-of-text mark follows as the last id.
        merges: the pair that each token after the first 256 was joined from, where it is known.
    """

    def __init__(self, name: str, tokens: list[bytes], merges: list[tuple[bytes, bytes]] | None = None) -> None:
        from tiktoken import Encoding

        self.name = name
        self.tokens = tokens
        self._merges = merges
        self.vocab_size = len(tokens) + 1
        self.end_of_text = len(tokens)
        self._ranks = {token: rank for rank, token in enumerate(tokens)}
        assert len(self._ranks) == len(tokens), "two ids have the same bytes"
        assert all(len(token) == 1 for token in tokens[:256]), "the first 256 tokens are the single bytes"
        # No special token is made known to tiktoken, so that no text can spell one.
        self._encoding = Encoding(name, pat_str=SPLIT, mergeable_ranks=self._ranks, special_tokens={})

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, shape (n,), dtype uint32. A lone surrogate is U+FFFD."""
        try:
            if len(text) <= PIECE:
                return self._encode_piece(text)
            return np.concatenate([self._encode_piece(piece) for piece in pieces(text)])
        except UnicodeEncodeError:
            return self.encode(well_formed(text))

    def _encode_piece(self, piece: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(piece, allowed_special=set(), disallowed_special=())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of ids in [0, vocab_size); end_of_text gives nothing."""
        return self._encoding.decode_bytes([int(i) for i in ids if i != self.end_of_text])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    @property
    def merges(self) -> list[tuple[bytes, bytes]]:
        """The pair that each token after the first 256 was joined from, in the order of ids."""
        if self._merges is None:
            self._merges = [self.pair_of(token) for token in self.tokens[256:]]
        return self._merges

    def pair_of(self, token: bytes) -> tuple[bytes, bytes]:
        """The two tokens that the merges before `token` leave of its bytes.

        Raises:
            ValueError: they leave more than two, so that no merge can have made it.
        """
        ranks, limit = self._ranks, self._ranks[token]
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            joint = [ranks.get(left + right, limit) for left, right in pairwise(parts)]
            lowest = min(joint)
            if lowest >= limit:
                break
            at = joint.index(lowest)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) != 2:
            raise ValueError(f"the token {token!r} is no pair of earlier tokens")
        return parts[0], parts[1]

    def to_files(self, context_length: int) -> dict[str, dict[str, Any]]:
        """File name → JSON value: a GPT-2 tokenizer as transformers knows it."""
        spelled = [spell(token) for token in self.tokens]
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return tokenizer_files(
            self.name,
            self.end_of_text,
            context_length,
            model={
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {spelling: i for i, spelling in enumerate([*spelled, END_OF_TEXT])},
                "merges": [[spell(left), spell(right)] for left, right in self.merges],
            },
            pre_tokenizer=level,
            decoder=level,
            config={"tokenizer_class": "GPT2Tokenizer", "unk_token": END_OF_TEXT, "add_prefix_space": False},
        )

    def fingerprint(self) -> str:
        """16 hexadecimal digits that differ whenever any text could encode differently."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint_of("byte-level BPE", self.tokens)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Train on pieces of text, each read once; the same pieces give the same tokenizer.

    Args:
        texts: pieces of any length; memory holds a few of them and the count of each distinct word.
        vocab_size: number of ids, the end-of-text mark included. A text with few words gives fewer.

    Raises:
        ConfigError: `vocab_size` is under 257.
    """
    if vocab_size < 257:
        raise ConfigError(
            f"bpe:{vocab_size} has too few ids.", "Give at least 257: 256 bytes and the end-of-text mark."
        )
    import rustbpe

    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  (a compiled module without types)
    bounded = (piece for text in texts for piece in pieces(well_formed(text)))
    trainer.train_from_iterator(bounded, vocab_size - 1, buffer_size=64, pattern=SPLIT)
    ranked = sorted(trainer.get_mergeable_ranks(), key=lambda entry: entry[1])
    # One id for each spelling, the first. What was joined from a token that is too long is itself too long.
    tokens = list(dict.fromkeys(bytes(token) for token, _ in ranked if len(token) <= LONGEST))
    return BytePairTokenizer(f"bpe:{vocab_size}", tokens)
