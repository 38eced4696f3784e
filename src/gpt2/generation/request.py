"""What is asked of the engine, and what it gives back. No torch: whoever only passes messages needs none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gpt2.config.commands import LARGEST_PENALTY, LARGEST_SEED, LARGEST_TEMPERATURE
from gpt2.errors import ConfigError

GREEDY_BELOW = 1e-3
"""Below this temperature the likeliest token is taken."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The order: bias, penalties, temperature, top-k, top-p, min-p, draw.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    """0 to 5; below 0.001 the likeliest token is always taken, and what follows in the chain is without effect."""
    top_k: int = 0
    """Choose among this many likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Choose among the fewest likeliest tokens that have this probability together, above 0 to 1."""
    min_p: float = 0.0
    """Choose among tokens at least this many times as likely as the likeliest, 0 to 1."""
    repetition_penalty: float = 1.0
    """Divides the logits (multiplies negative ones) of all tokens that stand in the prompt or the answer."""
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time it stands in the answer."""
    presence_penalty: float = 0.0
    """Taken off a token's logit if it stands in the answer at all."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of single tokens."""
    seed: int | None = None
    """The same seed and logits give the same tokens; None: a new one from the system."""

    def __post_init__(self) -> None:
        penalty = (-LARGEST_PENALTY, LARGEST_PENALTY)
        # Comparisons are written so that NaN fails them.
        _check("temperature", self.temperature, 0.0, LARGEST_TEMPERATURE)
        _check("top-k", self.top_k, 0, math.inf)
        _check("top-p", self.top_p, 0.0, 1.0, above=True)
        _check("min-p", self.min_p, 0.0, 1.0)
        _check("repetition-penalty", self.repetition_penalty, 0.0, LARGEST_PENALTY, above=True)
        _check("frequency-penalty", self.frequency_penalty, *penalty)
        _check("presence-penalty", self.presence_penalty, *penalty)
        for token, bias in self.logit_bias.items():
            _check(f"logit-bias of token {token}", bias, *penalty)
        if self.seed is not None:
            _check("seed", self.seed, 0, LARGEST_SEED)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Request:
    """A text to continue.

    Raises:
        ConfigError: a value is out of range.
    """

    prompt_ids: tuple[int, ...]
    """What was written so far; if empty, a new document begins. Beyond the context, its newest part is read."""
    max_tokens: int
    """Tokens of the answer at most, 0 or more."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    """Strings that end the answer, wherever tokens cut them; neither they nor what follows is given as text."""
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the answer besides the tokenizer's end of text; they are not given."""
    logprobs: int | None = None
    """Alternatives to report for each token, 0 or more; None: no log-probabilities at all."""

    def __post_init__(self) -> None:
        _check("max-tokens", self.max_tokens, 0, math.inf)
        if not all(self.stop):
            raise ConfigError("A stop string is empty, so there would be no text.", "Give at least one character.")
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, 0, math.inf)

    def check_ids(self, vocab_size: int) -> None:
        """Refuse ids that a tokenizer of this size does not have.

        Raises:
            ConfigError: such an id stands in the prompt, the bias or the stop ids.
        """
        for name, ids in (
            ("prompt", self.prompt_ids),
            ("logit-bias", self.sampling.logit_bias),
            ("stop-ids", self.stop_ids),
        ):
            wrong = next((token for token in ids if not 0 <= token < vocab_size), None)
            if wrong is not None:
                raise ConfigError(f"{name}: there is no token {wrong}.", f"Ids are 0 to {vocab_size - 1:,}.")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer."""

    id: int
    bytes: bytes
    """What it spells; may begin or end within a character."""
    logprob: float | None = None
    """Its natural log-probability by the model itself, before bias, penalties and temperature; None: not asked."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest ids and their log-probabilities, best first; the chosen one may be among them."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What a token added to an answer. Texts of all deltas, joined, are the answer."""

    text: str
    """What has become certain: whole characters; what may yet become a stop string is held back."""
    tokens: tuple[Token, ...]
    """The token, whether or not its text is held back or ends up in a stop string; none, if the model ended it."""
    finish: Finish | None = None
    """Set in the last delta of an answer. stop: the model ended it, or a stop string or id; length: max_tokens."""


def _check(name: str, value: float, least: float, most: float, above: bool = False) -> None:
    """Raise a ConfigError unless the value is from `least` (or above it) to `most`."""
    if (value > least if above else value >= least) and value <= most:
        return
    low = f"above {least:g}" if above else f"from {least:g}"
    if isinstance(least, int) and (most == math.inf or isinstance(most, int)):
        raise ConfigError(f"{name} {value} is out of range.", f"Choose a whole number {low}{_to(most)}.")
    raise ConfigError(f"{name} {value} is out of range.", f"Choose a number {low}{_to(most)}.")


def _to(most: float) -> str:
    if most == math.inf:
        return ""
    return f" to {most}" if isinstance(most, int) else f" to {most:g}"
