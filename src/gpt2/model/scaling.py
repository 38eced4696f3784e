"""What loss a model will reach, from its size, the tokens it sees and the text they are from. No torch.

The law is Chinchilla's (Hoffmann et al. 2022, section 3.3, approach 3) with repeated tokens worth less
(Muennighoff et al. 2023, section 3.1), in units of the text's bigram line, which every text has:

    loss / bigram = E + G·ln(characters a token) + A·N^-α + B·D'^-β
    D' = U + U·R·(1 - exp(-(D / U - 1) / R))        for D > U, else D

Its seven numbers are fitted by `benchmarks/fit_scaling.py` to small runs on CPUs; docs/experiments.md tells of these.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """What the law needs to know of a text."""

    tokens: int
    """Different tokens to train on, U."""
    characters_per_token: float
    bigram: float
    """Loss of counted pairs of tokens on the validation part, nats a token."""


@dataclass(frozen=True, slots=True)
class Law:
    """The fitted numbers; `noise` is the root of the mean squared miss, as a share of the loss."""

    E: float
    G: float
    A: float
    alpha: float
    B: float
    beta: float
    R: float
    noise: float = 0.0

    def loss(self, block_parameters: float, tokens: float, text: Text) -> float:
        """The lowest validation loss to expect, nats a token.

        Args:
            block_parameters: weights of the blocks, N: without embeddings, whose number is the vocabulary's affair.
            tokens: seen in training, D.
            text: what they are from.
        """
        seen = worth(tokens, text.tokens, self.R)
        ratio = self.E + self.G * math.log(text.characters_per_token)
        return text.bigram * (ratio + self.A * block_parameters**-self.alpha + self.B * seen**-self.beta)


def worth(tokens: float, different: float, half: float) -> float:
    """How many fresh tokens the seen ones are worth, D': a second reading is worth less than the first."""
    if tokens <= different:
        return tokens
    return different * (1 + half * (1 - math.exp(-(tokens / different - 1) / half)))


LAW = Law(E=0.178, G=0.1423, A=237.9, alpha=0.7263, B=4.087, beta=0.1517, R=15.11, noise=0.028)
"""Fitted on 2026-11-25 to the 26 runs of benchmarks/scaling.jsonl with 146 steps and more."""
