"""Everything that a model computes on its way through a text, kept."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2.model.gpt2 import GPT2
from gpt2.model.precision import products_of


@dataclass(frozen=True, slots=True)
class Trace:
    """One text's way through a model of L layers and H heads; all numbers in fp32, on the CPU."""

    ids: tuple[int, ...]
    """The text, T tokens."""
    attention: Tensor
    """What share of its attention each token gives to each one before it and itself, shape (L, H, T, T)."""
    residuals: Tensor
    """The residual stream: embeddings, then the sum after each block, shape (L + 1, T, C)."""
    logits: Tensor
    """Of the token after each one, shape (T, V)."""


@torch.inference_mode()
def trace(model: GPT2, ids: Sequence[int]) -> Trace:
    """Read a text and keep what went on. The model is as before afterwards, and may be in training.

    Args:
        model: on any device, in any precision.
        ids: 1 to context_length tokens.
    """
    projected: list[Tensor] = []
    residuals: list[Tensor] = []

    def keep_projection(_: nn.Module, __: object, output: Tensor) -> None:
        projected.append(output[0].float())  # queries, keys and values side by side: (T, 3C)

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        residuals.append(inputs[0][0].float())  # (T, C)

    with contextlib.ExitStack() as hooks, _evaluating(model), products_of(model):
        for block in model.h:
            hooks.callback(block.register_forward_pre_hook(keep_input).remove)
            hooks.callback(block.get_submodule("attn.c_attn").register_forward_hook(keep_projection).remove)
        hooks.callback(model.ln_f.register_forward_pre_hook(keep_input).remove)
        logits = model(torch.tensor([list(ids)], device=model.wpe.weight.device))[0]
    attention = torch.stack([attention_weights(part, model.config.n_head) for part in projected])
    return Trace(tuple(ids), attention.cpu(), torch.stack(residuals).cpu(), logits.float().cpu())


def attention_weights(projected: Tensor, n_head: int) -> Tensor:
    """softmax(q · kᵀ / √D) under the causal mask (Vaswani et al. 2017, section 3.2.1).

    The model itself never has them in one piece: its fused attention multiplies them by the values as they arise.

    Args:
        projected: queries, keys and values side by side, shape (T, 3C).
        n_head: attention heads, H.

    Returns:
        Shape (H, T, T): [h, i, j] is what token i gives to token j in head h; rows add up to 1.
    """
    tokens, size = projected.shape[0], projected.shape[1] // 3 // n_head
    q, k, _ = (part.view(tokens, n_head, size).transpose(0, 1) for part in projected.chunk(3, dim=1))  # (H, T, D)
    scores = q @ k.mT * size**-0.5  # (H, T, T)
    unseen = torch.ones(tokens, tokens, dtype=torch.bool, device=projected.device).triu(1)
    return scores.masked_fill(unseen, -torch.inf).softmax(dim=-1)


@contextlib.contextmanager
def _evaluating(model: GPT2) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
