"""Choosing the next token: a chain of pure functions on logits.

Shapes: logits are (V,) or (B, V), V the vocabulary's size; a chosen id is () or (B,). A token that may no longer be
chosen has the logit minus infinity.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.config.commands import LARGEST_SEED, LARGEST_TEMPERATURE
from gpt2.errors import ConfigError

Sampler = Callable[[Tensor], Tensor]
"""Logits, shape (V,) or (B, V), to chosen ids, shape () or (B,)."""


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
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    likelier = probabilities.cumsum(dim=-1) - probabilities  # what the tokens before each one have together
    likelier[..., 0] = 0.0  # exactly, so that even the smallest p keeps the first
    return torch.full_like(logits, -math.inf).scatter(-1, places, ordered.masked_fill(likelier >= p, -math.inf))


def greedy(logits: Tensor) -> Tensor:
    """The likeliest token; of equals the one with the lowest id."""
    return logits.argmax(dim=-1)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token drawn with the probabilities that softmax gives."""
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def make_sampler(temperature: float = 0.8, top_k: int = 50, top_p: float = 1.0, seed: int | None = None) -> Sampler:
    """The chain temperature → top-k → top-p → draw, with a random generator of its own.

    Numbers are computed on the CPU in 64-bit floats: the same seed and logits give the same tokens whatever the
    model runs on, and probabilities of a large vocabulary add up.

    Args:
        temperature: 0 (always the likeliest token; the rest is then without effect) to 5.
        top_k: choose among this many likeliest tokens; 0 for all.
        top_p: choose among the likeliest tokens of this total probability, above 0 to 1.
        seed: whole number from 0; None for a new one from the system.

    Raises:
        ConfigError: a value is out of range.
    """
    if not 0.0 <= temperature <= LARGEST_TEMPERATURE:  # false for NaN, too
        raise ConfigError(
            f"temperature {temperature} is out of range.", f"Choose a number from 0 to {LARGEST_TEMPERATURE:g}."
        )
    if top_k < 0:
        raise ConfigError(f"top-k {top_k} is out of range.", "Choose a whole number from 0, which means all tokens.")
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"top-p {top_p} is out of range.", "Choose a number above 0 and at most 1.")
    if seed is not None and not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"seed {seed} is out of range.", f"Choose a whole number from 0 to {LARGEST_SEED}.")
    if temperature == 0.0:
        return greedy

    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)

    def sample(logits: Tensor) -> Tensor:
        logits = apply_temperature(logits.cpu().double(), temperature)
        return draw(keep_top_p(keep_top_k(logits, top_k), top_p), generator)

    return sample
