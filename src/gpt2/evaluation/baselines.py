"""What simpler models reach on the same validation text: lines on the plot that give a loss its meaning."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpt2.errors import UserError
from gpt2.files import read_json

DISCOUNT = 0.75  # the customary value of absolute discounting (Ney, Essen & Kneser 1994)
COUNTED_TOKENS = 20_000_000  # enough for a bigram table; more would only cost memory


class Baselines(NamedTuple):
    """Cross-entropy on the validation part, nats a token, of three models that were counted, not trained."""

    uniform: float
    """Every token equally likely."""
    unigram: float
    """Each token as often as in the training part."""
    bigram: float
    """Each token as often as after the token before it."""


def kept(path: Path) -> Baselines | None:
    """What was counted before and kept in a file; None where that is not there, or damaged: they are counted anew."""
    try:
        values = {name: float(value) for name, value in read_json(path).items()}
        return Baselines(**values)
    except (OSError, UserError, AttributeError, TypeError, ValueError):
        return None


def baselines(train: NDArray[np.integer], validation: NDArray[np.integer], vocab_size: int) -> Baselines:
    """Count uniform, unigram and bigram models on the training part and measure them on the validation part.

    The unigram model adds half a count to each token. The bigram model takes a constant off each count and gives
    what it gains to the unigram model, as interpolated absolute discounting does (Chen & Goodman 1998, section 2.4):

        p(b|a) = max(c(a, b) - D, 0) / c(a) + D · N(a) / c(a) · p(b),   N(a): different followers of a

    A table of the validation text's own bigrams would look far better than any model can be: with thousands of
    different tokens most of its pairs occur once, and so would predict themselves.

    Args:
        train: ids of the training part, shape (n,), n ≥ 1.
        validation: ids of the validation part, shape (m,), m ≥ 2.
        vocab_size: number of ids.
    """
    train = train.astype(np.int64)
    validation = validation.astype(np.int64)
    counts = np.bincount(train, minlength=vocab_size)
    unigram = (counts + 0.5) / (len(train) + 0.5 * vocab_size)  # (V,)
    before, after = validation[:-1], validation[1:]

    pairs, pair_counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)  # sorted
    contexts = np.bincount(train[:-1], minlength=vocab_size)  # c(a)
    followers = np.bincount(pairs // vocab_size, minlength=vocab_size)  # N(a)
    seen = np.zeros(len(before), dtype=np.int64)
    if len(pairs):
        wanted = before * vocab_size + after
        place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
        seen = np.where(pairs[place] == wanted, pair_counts[place], 0)  # c(a, b)
    context = np.maximum(contexts[before], 1)
    bigram = np.maximum(seen - DISCOUNT, 0) / context + DISCOUNT * followers[before] / context * unigram[after]
    bigram = np.where(contexts[before] > 0, bigram, unigram[after])
    return Baselines(
        uniform=math.log(vocab_size),
        unigram=float(-np.log(unigram[after]).mean()),
        bigram=float(-np.log(bigram).mean()),
    )
