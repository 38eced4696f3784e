"""What a model expects: of each next token, and what each of its layers would have said already."""

from typing import NamedTuple

import torch
from torch import Tensor

from gpt2.inspection.trace import Trace
from gpt2.model.gpt2 import GPT2
from gpt2.model.precision import products_of


class Surprise(NamedTuple):
    """How each token of a text, from the second on, was expected; shapes (T - 1,)."""

    loss: Tensor
    """Negative log-likelihood, in nats."""
    rank: Tensor
    """How many tokens were thought likelier; 0: it was the first guess."""


class Lens(NamedTuple):
    """The guesses of each depth: row 0 reads the embeddings, row l what block l has written."""

    ids: Tensor
    """The likeliest next tokens, best first, shape (L + 1, T, k)."""
    probabilities: Tensor
    """What each depth gives them, shape (L + 1, T, k)."""


def surprise(trace: Trace) -> Surprise:
    """The loss and rank of each token that stands in the text."""
    read, following = trace.logits[:-1], torch.tensor(trace.ids[1:])[:, None]  # (T - 1, V), (T - 1, 1)
    chosen = read.gather(1, following)
    return Surprise((read.logsumexp(dim=1, keepdim=True) - chosen)[:, 0], (read > chosen).sum(dim=1))


@torch.inference_mode()
def logit_lens(model: GPT2, trace: Trace, vocab_size: int, k: int = 5) -> Lens:
    """Read the residual stream at each depth as if it were the last (nostalgebraist 2020, "the logit lens").

    The last norm and the output matrix turn each depth's stream into logits; at the last they are the model's own.

    Args:
        model: the one of the trace.
        trace: a text's way through it.
        vocab_size: ids of the tokenizer; rows of the model beyond it mean nothing.
        k: guesses to keep.
    """
    device = model.wpe.weight.device
    ids, probabilities = [], []
    for stream in trace.residuals:  # a depth at a time: all logits of all depths would be gigabytes
        with products_of(model):
            logits = model.logits(model.ln_f(stream.to(device)))[:, :vocab_size]
        best = logits.float().softmax(dim=-1).topk(min(k, vocab_size), dim=-1)
        ids.append(best.indices.cpu())
        probabilities.append(best.values.cpu())
    return Lens(torch.stack(ids), torch.stack(probabilities))
