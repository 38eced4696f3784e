"""Choosing the next token: a chain of pure functions, and one object an answer that applies it.

Shapes: logits and weights are (V,), V the vocabulary's size, in floats of 32 bits as they come from the model, or of
64; sums of many are made in blocks or in 64. A weight is how many times as likely a token is as the likeliest; the
weight of one that may no longer be chosen is 0. Numbers are NumPy's: of 50,257 it makes a draw in 0.08 ms, where all in
64 bits took 0.12 and PyTorch 0.2, and with top-p in 0.2 to 0.7, where PyTorch took up to 6.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gpt2.generation.request import Sampling

Floats = NDArray[np.floating]

BLOCK = 256
"""Weights are added up in blocks: the one that a draw falls into is found first, then the token in it."""
RARE = (1e-3, 1e-4, 1e-5)
"""Few tokens are likelier than this; where they are enough, no others are sorted."""


def penalize_repetition(logits: Floats, seen: NDArray[np.bool_], penalty: float) -> Floats:
    """Logits of seen tokens divided by a penalty, negative ones multiplied (Keskar et al. 2019, section 4.1).

    Args:
        logits: shape (V,).
        seen: whether each token stands in the text so far, shape (V,).
        penalty: above 0; 1 changes nothing.
    """
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalize_counts(logits: Floats, counts: Floats, frequency: float, presence: float) -> Floats:
    """Logits less `frequency` for each time that a token was written, and less `presence` if it was at all.

    Args:
        logits: shape (V,).
        counts: how often each token stands in the answer, shape (V,).
        frequency: 0 changes nothing; negative values encourage.
        presence: likewise.
    """
    return logits - frequency * counts - presence * (counts > 0)


def weigh(logits: Floats, temperature: float, most: np.floating | None = None) -> Floats:
    """Weights of tokens: softmax of the logits divided by a temperature above 0, its largest number moved to 1.

    Args:
        logits: shape (V,).
        temperature: 1 changes nothing.
        most: the largest of the logits, where it is known already.
    """
    weights = logits - (logits.max() if most is None else most)
    if temperature != 1.0:
        weights *= 1 / temperature  # a division takes four times as long
    return np.exp(weights, out=weights)


def keep_top_k(weights: Floats, k: int) -> Floats:
    """Only the k likeliest tokens; of equals those with the lowest ids (Fan et al. 2018, section 5.4). k of 0: all."""
    if k == 0 or k >= len(weights):
        return weights
    return _only(weights, largest(weights, k))


def keep_top_p(weights: Floats, p: float) -> Floats:
    """Only the nucleus: the fewest likeliest tokens of probability p together (Holtzman et al. 2020, section 3.1).

    The likeliest token always stays; p of 1 keeps all.
    """
    if p >= 1.0:
        return weights
    total = weights.sum(dtype=np.float64)  # in 32 bits the smallest p of it would be 0, and the largest all
    wanted = p * total
    likely = (np.flatnonzero(weights > rare * total) for rare in RARE)
    ids = next((some for some in likely if weights[some].sum(dtype=np.float64) >= wanted), np.arange(len(weights)))
    likeliest = ids[np.argsort(-weights[ids], kind="stable")]
    before = np.cumsum(weights[likeliest], dtype=np.float64) - weights[likeliest]
    before[0] = 0.0  # exactly, so that even the smallest p keeps the first
    return _only(weights, likeliest[before < wanted])


def keep_min_p(weights: Floats, p: float) -> Floats:
    """Only tokens at least p times as likely as the likeliest (Nguyen et al. 2024, section 3). p of 0 keeps all."""
    return weights if p == 0.0 else np.where(weights < p * weights.max(), 0.0, weights)


def draw(weights: Floats, generator: torch.Generator) -> int:
    """A token drawn with probabilities as the weights: one random number a token, inverse transform."""
    below = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK)).cumsum(dtype=np.float64)
    number = below[-1] * torch.rand(1, dtype=torch.float64, generator=generator).item()
    # What was rounded up to the total, of all or of a block, stands for the last token that can be chosen.
    block = min(int(below.searchsorted(number, "right")), int(below.searchsorted(below[-1])))
    within = weights[block * BLOCK : (block + 1) * BLOCK].cumsum(dtype=np.float64)
    left = number - (below[block - 1] if block else 0.0)
    return block * BLOCK + min(int(within.searchsorted(left, "right")), int(within.searchsorted(within[-1])))


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Natural log-probabilities of all tokens, shape (V,)."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    return shifted - np.log(np.exp(shifted).sum())


def largest(numbers: Floats, k: int) -> NDArray[np.intp]:
    """The places of the k largest numbers, all if there are fewer; the largest first, of equals the first."""
    if k < 1:
        return np.empty(0, dtype=np.intp)
    # PyTorch finds the last of them in 0.13 ms of 50,257; NumPy's partition takes 0.5, and sorting all up to 4.
    least = torch.from_numpy(numbers).topk(min(k, len(numbers))).values[-1].item()
    places = np.flatnonzero(numbers >= least)
    return places[np.argsort(-numbers[places], kind="stable")][:k]


def _only(weights: Floats, ids: NDArray[np.intp]) -> Floats:
    kept = np.zeros_like(weights)
    kept[ids] = weights[ids]
    return kept


class Sampler:
    """Chooses the tokens of one answer, one by one; it counts what it has chosen and has a generator of its own.

    Numbers are computed on the CPU by NumPy: the same seed and logits give the same tokens whatever the model runs on.

    Args:
        sampling: how to choose.
        prompt_ids: the text before the answer, for the repetition penalty.
        vocab_size: number of logits, V; only where there are penalties.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int] = (), vocab_size: int = 0) -> None:
        self.sampling = sampling
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)
        self.seen: NDArray[np.bool_] | None = None  # (V,): tokens of prompt and answer
        self.counts: Floats | None = None  # (V,): tokens of the answer
        if sampling.repetition_penalty != 1.0:
            self.seen = np.zeros(vocab_size, dtype=np.bool_)
            self.seen[list(prompt_ids)] = True
        if sampling.frequency_penalty or sampling.presence_penalty:
            self.counts = np.zeros(vocab_size)
        self._biased = np.array(sorted(sampling.logit_bias), dtype=np.intp)
        self._biases = np.array([sampling.logit_bias[token] for token in self._biased], dtype=np.float32)
        self._raises = bool((self._biases > 0).any())

    def adjusted(self, logits: Floats) -> Floats:
        """Logits after bias and penalties, in 64 bits if there are penalties; the same array where there is neither."""
        sampling = self.sampling
        penalized = self.seen is not None or self.counts is not None
        adjusted = logits.astype(np.float64) if penalized else logits.copy() if len(self._biased) else logits
        adjusted[self._biased] += self._biases
        if self.seen is not None:
            adjusted = penalize_repetition(adjusted, self.seen, sampling.repetition_penalty)
        if self.counts is not None:
            adjusted = penalize_counts(adjusted, self.counts, sampling.frequency_penalty, sampling.presence_penalty)
        return adjusted

    def weights(self, adjusted: Floats, most: np.floating) -> Floats:
        """What the draw reads: how likely each token is after the rest of the chain, with the largest of the logits."""
        sampling = self.sampling
        weights = weigh(adjusted, sampling.temperature, most)
        return keep_min_p(keep_top_p(keep_top_k(weights, sampling.top_k), sampling.top_p), sampling.min_p)

    def __call__(self, logits: Floats) -> int | None:
        """Choose from the logits of an answer's next token, shape (V,), and count it; None: they are no numbers.

        That is where one is NaN, the largest is infinite, or all are: where a model has diverged.
        """
        if self.sampling.greedy:
            token = self._likeliest(logits)
            sound = math.isfinite(logits[token])  # NaN counts as the largest of all
        else:
            adjusted = self.adjusted(logits)
            most = adjusted.max()
            sound = math.isfinite(most)
            token = draw(self.weights(adjusted, most), self.generator) if sound else 0
        if not sound:
            return None
        if self.seen is not None:
            self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1
        return token

    def _likeliest(self, logits: Floats) -> int:
        """The token with the largest of the adjusted logits, of equals the first."""
        if self.seen is not None or self.counts is not None:
            return int(self.adjusted(logits).argmax())
        one = int(logits.argmax())
        if one not in self.sampling.logit_bias and not self._raises:
            return one  # nothing can overtake it
        # The same as above without a copy of them all, which takes longer than all else here.
        own = logits[self._biased]
        logits[self._biased] = -np.inf  # and back: a copy takes longer than the search
        one = int(logits.argmax())
        best = logits[one]
        logits[self._biased] = own
        biased = own + self._biases
        other = int(biased.argmax())
        token = int(self._biased[other])
        behind = biased[other] < best or (biased[other] == best and one < token)
        return one if behind or np.isnan(best) else token
