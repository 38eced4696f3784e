"""Choosing the next token: a chain of pure functions on logits, and one object an answer that applies it.

Shapes: logits are (V,) or (B, V), V the vocabulary's size; a chosen id is () or (B,). A token that may no longer be
chosen has the logit minus infinity.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt2.generation.request import Sampling

NUCLEUS = 1024
"""Most nuclei have fewer tokens than this; finding so many largest is many times as fast as sorting all."""


def add_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Logits with something added to those of single ids."""
    if not bias:
        return logits
    ids = torch.tensor(list(bias))
    return logits.index_add(
        -1, ids, torch.tensor(list(bias.values()), dtype=logits.dtype).expand(*logits.shape[:-1], -1)
    )


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits of seen tokens divided by a penalty, negative ones multiplied (Keskar et al. 2019, section 4.1).

    Args:
        logits: (V,) or (B, V).
        seen: whether each token stands in the text so far, shape (V,), bool.
        penalty: above 0; 1 changes nothing.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalize_counts(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits less `frequency` for each time that a token was written, and less `presence` if it was at all.

    Args:
        logits: (V,) or (B, V).
        counts: how often each token stands in the answer, shape (V,).
        frequency: 0 changes nothing; negative values encourage.
        presence: likewise.
    """
    return logits - frequency * counts - presence * (counts > 0)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature above 0: below 1 the likely becomes likelier, above 1 the unlikely does.

    The largest logit is moved to 0 first, which changes no probability and keeps tiny temperatures finite.
    """
    return (logits - logits.amax(dim=-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Only the k largest logits, exactly k even where some are equal (Fan et al. 2018, section 5.4). k of 0: all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    largest, places = logits.topk(k, dim=-1)  # (…, k)
    return torch.full_like(logits, -math.inf).scatter(-1, places, largest)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Only the nucleus: the fewest likeliest tokens of probability p together (Holtzman et al. 2020, section 3.1).

    The likeliest token always stays; p of 1 keeps all.
    """
    if p >= 1.0:
        return logits
    total = logits.logsumexp(dim=-1, keepdim=True)
    ordered, places = logits.topk(min(NUCLEUS, logits.shape[-1]), dim=-1)
    if ((ordered - total).exp().sum(dim=-1) < p).any():  # a flat distribution: its nucleus is larger
        ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = (ordered - total).exp()
    likelier = probabilities.cumsum(dim=-1) - probabilities  # what the tokens before each one have together
    likelier[..., 0] = 0.0  # exactly, so that even the smallest p keeps the first
    return torch.full_like(logits, -math.inf).scatter(-1, places, ordered.masked_fill(likelier >= p, -math.inf))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Only tokens at least p times as likely as the likeliest (Nguyen et al. 2024, section 3). p of 0 keeps all."""
    if p == 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -math.inf)


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token; of equals the one with the lowest id."""
    return torch.from_numpy(np.asarray(logits.numpy().argmax(axis=-1)))  # 9 µs of 50,257; PyTorch's takes 80


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token drawn with the probabilities that softmax gives: one random number a token, inverse transform."""
    below = logits.softmax(dim=-1).cumsum(dim=-1)  # (…, V): ends at the total, 1 but for rounding
    total = below[..., -1:].contiguous()
    number = total * torch.rand(total.shape, dtype=logits.dtype, generator=generator)
    # A product that was rounded up to the total stands for the last token that can be chosen.
    chosen = torch.searchsorted(below, number, right=True).minimum(torch.searchsorted(below, total))
    return chosen.squeeze(-1)


class Sampler:
    """Chooses the tokens of one answer, one by one; it counts what it has chosen and has a generator of its own.

    Numbers are computed on the CPU in 64-bit floats: the same seed and logits give the same tokens whatever the
    model runs on, and probabilities of a large vocabulary add up.

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
        self.seen: Tensor | None = None  # (V,): tokens of prompt and answer
        self.counts: Tensor | None = None  # (V,): tokens of the answer
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[list(prompt_ids)] = True
        if sampling.frequency_penalty or sampling.presence_penalty:
            self.counts = torch.zeros(vocab_size, dtype=torch.float64)

    def adjusted(self, logits: Tensor) -> Tensor:
        """What the draw reads: logits after the whole chain, in 64-bit floats."""
        sampling = self.sampling
        logits = add_bias(logits.double(), sampling.logit_bias)
        if self.seen is not None:
            logits = penalize_repetition(logits, self.seen, sampling.repetition_penalty)
        if self.counts is not None:
            logits = penalize_counts(logits, self.counts, sampling.frequency_penalty, sampling.presence_penalty)
        if sampling.greedy:
            return logits
        logits = apply_temperature(logits, sampling.temperature)
        return keep_min_p(keep_top_p(keep_top_k(logits, sampling.top_k), sampling.top_p), sampling.min_p)

    def __call__(self, logits: Tensor) -> int:
        """Choose from the logits of an answer's next token, shape (V,), and count it."""
        logits = self.adjusted(logits)
        token = int(greedy(logits) if self.sampling.greedy else draw(logits, self.generator))
        if self.seen is not None:
            self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1
        return token
