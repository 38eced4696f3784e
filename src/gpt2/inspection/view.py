"""A look inside as plain JSON values, for whoever draws it: the terminal, a page."""

import base64
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2.corpus.shards import TokenShards
from gpt2.inspection.lens import logit_lens, surprise
from gpt2.inspection.passages import VERBATIM, closest, document_at, shortest_span, tokens_of_a_word, verbatim_spans
from gpt2.inspection.trace import trace
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.roles import ROLE_SPELLINGS, roles_of

MOST_TOKENS = 192
"""Of a text that is looked into; of a longer one its end. Attention grows with the square."""
MOST_ATTENTION = 2**23
"""Numbers of attention in a view, two bytes each; of models with very many heads the text is cut shorter still."""
GUESSES = 48
"""Likeliest next tokens that are told with their logits."""
BIN = 0.25
"""Width, in nats, of the bins that the other logits are counted in."""
AROUND = 48
"""Tokens of the training text that are shown before and after a span."""


def look(model: GPT2, tokenizer: Tokenizer, ids: Sequence[int], written: int) -> dict[str, Any]:
    """What the model makes of a text.

    Args:
        model: in any precision.
        tokenizer: its own.
        ids: the text; of more than `most_tokens` the end is taken.
        written: how many of the last ids the model wrote itself.

    Returns:
        `tokens`: of each its `id`, `text`, `loss` and `rank` (null for the first), whether it was `written`, and what
        the model expected after it: `guesses` (id, text, logit), best first, and `rest`, the other logits as
        (logit, count). `lens`: for each depth, the embeddings first, for each token its guesses (text, probability).
        `attention`: a base64 text of little-endian uint16, shape (layers, heads, T, T), 65535 for all attention.
    """
    ids = list(ids)[-most_tokens(model.config) :] or [tokenizer.end_of_text]
    seen = trace(model, ids)
    logits = seen.logits[:, : tokenizer.vocab_size]
    lens = logit_lens(model, seen, tokenizer.vocab_size)
    expected = surprise(seen)
    best = logits.topk(min(GUESSES, logits.shape[1]), dim=1)
    spelled = [spell(tokenizer, token) for token in ids]
    return {
        "layers": model.config.n_layer,
        "heads": model.config.n_head,
        "tokens": [
            {
                "id": token,
                "text": spelled[place],
                "written": place >= len(ids) - written,
                "loss": round(expected.loss[place - 1].item(), 5) if place else None,
                "rank": int(expected.rank[place - 1]) if place else None,
                "guesses": [
                    (guess, spell(tokenizer, guess), round(logit, 5))
                    for guess, logit in zip(best.indices[place].tolist(), best.values[place].tolist(), strict=True)
                ],
                "rest": _binned(logits[place], best.indices[place]),
            }
            for place, token in enumerate(ids)
        ],
        "lens": [
            [
                [(spell(tokenizer, guess), round(share, 5)) for guess, share in zip(row, shares, strict=True)]
                for row, shares in zip(depth_ids.tolist(), depth_shares.tolist(), strict=True)
            ]
            for depth_ids, depth_shares in zip(lens.ids, lens.probabilities, strict=True)
        ],
        "attention": base64.b64encode((seen.attention.numpy() * 65535).round().astype("<u2").tobytes()).decode(),
    }


def most_tokens(config: GPT2Config) -> int:
    """How many tokens of a text are looked into at most."""
    fits = math.isqrt(MOST_ATTENTION // (config.n_layer * config.n_head))
    return min(MOST_TOKENS, fits, config.context_length)


def origins(
    tokenizer: Tokenizer, ids: Sequence[int], written: int, shards: TokenShards, name_of: Sequence[str] = ()
) -> dict[str, Any]:
    """Where a text comes from in the training text.

    Args:
        tokenizer: of both.
        ids: the text.
        written: how many of the last ids the model wrote itself; 0: none, and all are asked about.
        shards: the training part.
        name_of: what document each is, where that is known; may be shorter than the number of documents.

    Returns:
        `spans`: those that stand word for word in the training text, with `start` and `stop` (tokens), `document`,
        and the words `before`, `text`, `after` there. `share`: of what the model wrote, in such spans. `characters`:
        that a span has at least. `tokens`: of the text. `passages`: the nearest, with `document`, `score`, `text`.
    """
    text = tokenizer.decode(ids)
    spans = verbatim_spans(ids, shards, shortest_span(text, len(ids)))
    covered = np.zeros(len(ids), dtype=bool)
    for span in spans:
        covered[span.start : span.stop] = True

    roles = roles_of(tokenizer)
    ends = (tokenizer.end_of_text, *((roles.end,) if roles else ()))

    def words(start: int, stop: int) -> str:
        """Tokens of the training text; what ends a message or a document ends a line."""
        there = shards.read(max(0, start), max(0, min(stop, len(shards)))).tolist()
        parts = ((end, list(part)) for end, part in groupby(there, ends.__contains__))
        return "".join("\n" * len(part) if end else tokenizer.decode(part) for end, part in parts)

    def name(document: int) -> str:
        return name_of[document] if document < len(name_of) else f"document {document + 1:,}"

    return {
        "spans": [
            {
                "start": span.start,
                "stop": span.stop,
                "document": name(document_at(shards, span.place)),
                "before": words(span.place - AROUND, span.place),
                "text": words(span.place, span.place + span.stop - span.start),
                "after": words(span.place + span.stop - span.start, span.place + span.stop - span.start + AROUND),
            }
            for span in spans
        ],
        "share": float(covered[-written:].mean()) if len(ids) else 0.0,
        "characters": VERBATIM,
        "tokens": len(ids),
        "passages": [
            {"document": name(one.document), "score": round(one.score, 2), "text": words(one.start, one.stop).rstrip()}
            for one in closest(ids, shards, tokens_of_a_word(text, len(ids)))
        ],
    }


def spell(tokenizer: Tokenizer, token: int) -> str:
    """One token as text; a part of a character as its bytes, a mark by its name."""
    if token == tokenizer.end_of_text:
        return "<|endoftext|>"
    roles = roles_of(tokenizer)
    if roles is not None and token in roles.all:
        return ROLE_SPELLINGS[roles.all.index(token)]
    spelled = tokenizer.decode_bytes([token])
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in spelled)


def _binned(logits: Tensor, told: Tensor) -> list[tuple[float, int]]:
    """Logits other than the told ones, counted: (the one that stands for a bin, how many are in it).

    It stands for them by the mean of their exponentials, so their sum is exact at temperature 1, and within half a
    percent of it (bins are narrow) from temperature 0.5 on.
    """
    others = np.delete(logits.double().numpy(), told.numpy())
    if not len(others):
        return []
    bins = np.floor((others - others.max()) / BIN).astype(int)
    bins = np.maximum(bins, -80)  # e^-20 of the likeliest and less: together nothing
    numbers, place, counts = np.unique(bins, return_inverse=True, return_counts=True)
    sums = np.bincount(place, np.exp(others - others.max()), minlength=len(numbers))
    means = np.log(np.maximum(sums / counts, 1e-300)) + others.max()
    return [(round(float(mean), 4), int(count)) for mean, count in zip(means, counts, strict=True)]


def softmax_of(token: dict[str, Any], temperature: float = 1.0) -> list[float]:
    """Probabilities of a token's guesses at a temperature, from its view: what a page computes, too."""
    logits = torch.tensor([logit for _, _, logit in token["guesses"]], dtype=torch.float64)
    rest = token["rest"]
    others = torch.tensor([logit for logit, _ in rest], dtype=torch.float64) / temperature
    counted = torch.tensor([float(count) for _, count in rest], dtype=torch.float64).log()
    total = torch.cat([logits / temperature, others + counted]).logsumexp(0)
    return (logits / temperature - total).exp().tolist()
