"""What a model costs: parameters, arithmetic and memory, from its sizes alone. No torch: a plan needs none."""

from typing import NamedTuple, Protocol

STATE_BYTES = 16
"""Of each parameter in training: weight 4, gradient 4, Adam's two running means 8, all in fp32."""
CHECKPOINT_BYTES = 12
"""Of each parameter in a checkpoint: the state without gradients."""
ACTIVATION_BYTES = 34
"""Of each number of width, token and block, kept for the backward pass.

Korthikanti et al. 2022 (arXiv 2205.05198), section 4.1: 34·s·b·h a block in 16 bits, less attention's 5·a·s²·b, which
FlashAttention never stores.
"""
LOGIT_BYTES = 10
"""Of each token and id of the vocabulary: logits in 16 bits, their log-softmax and its gradient in fp32."""
LOGIT_CHUNK = 2**28
"""Logits that lie in a GPU's memory at once where the loss is computed in chunks, as in training."""


class Sizes(Protocol):
    """What fixes a GPT-2's cost; a `GPT2Config` has it."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_embd(self) -> int: ...


class Memory(NamedTuple):
    """Bytes on one GPU in training, by what holds them."""

    weights: float
    gradients: float
    optimizer: float
    bf16_weights: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Sum of all, bytes."""
        return sum(self)


def block_parameters(n_embd: int) -> int:
    """Weights of one block: 12·C² + 13·C."""
    return 12 * n_embd**2 + 13 * n_embd


def parameters(config: Sizes) -> int:
    """Number of weights: V·C + T·C + L·(12·C² + 13·C) + 2·C; the tied output matrix counts once."""
    C, L = config.n_embd, config.n_layer
    return config.vocab_size * C + config.context_length * C + L * block_parameters(C) + 2 * C


def low_rank_parameters(config: Sizes, rank: int) -> int:
    """Weights of LoRA's products: rank · (inputs + outputs) of a block's four matrices, 16·C together."""
    return config.n_layer * rank * 16 * config.n_embd


def flops(multiplying: int, n_layer: int, n_embd: int, context_length: int) -> int:
    """Floating-point operations of one training token, forward and backward, of any transformer decoder.

    6 for each weight that multiplies, and 12·L·C·T for attention's two products (Kaplan et al. 2020, section 2.1;
    Chowdhery et al. 2022, appendix B). The causal half that attention could skip is counted, as is customary, and
    what is computed a second time to save memory is not.

    Args:
        multiplying: weights that take part in matrix products, so not those that are only looked up.
        n_layer: blocks.
        n_embd: width.
        context_length: tokens of a sequence.
    """
    return 6 * multiplying + 12 * n_layer * n_embd * context_length


def flops_per_token(config: Sizes) -> int:
    """`flops` of a GPT-2: positions are only looked up, the tied matrix multiplies once."""
    multiplying = parameters(config) - config.context_length * config.n_embd
    return flops(multiplying, config.n_layer, config.n_embd, config.context_length)


def training_state(parameters: int, shards: int = 1) -> tuple[float, float, float]:
    """Bytes of weights, gradients and optimizer on each of `shards` GPUs that share them (1: each has all)."""
    each = parameters / shards
    return 4 * each, 4 * each, (STATE_BYTES - 8) * each


def memory(
    config: Sizes,
    sequences: int,
    shards: int = 1,
    recompute: bool = False,
    accumulate: bool = False,
    chunked: bool = True,
) -> Memory:
    """Bytes on one GPU in training, bf16 matrix products over fp32 weights.

    Weights are there in bf16 too: all of them, as autocast copies them, or with FSDP2 those of the two blocks that
    compute and are fetched, and of the embeddings.

    Args:
        config: sizes of the model.
        sequences: in one forward and backward pass, each of `context_length` tokens.
        shards: GPUs that divide weights, gradients and optimizer among them (FSDP2); 1: each has all.
        recompute: keep only each block's input, 2 bytes a number, and everything of the one block at work.
        accumulate: whether a step has several micro-batches. FSDP2 then keeps whole gradients, in fp32, until the last.
        chunked: whether the loss is computed in chunks; each GPU then holds the output matrix's gradient twice and
            that of its input, but never all logits.
    """
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    size, tokens = parameters(config), sequences * config.context_length
    weights, gradients, optimizer = training_state(size, shards)
    kept = (2 * L + ACTIVATION_BYTES) * C if recompute else ACTIVATION_BYTES * L * C
    logits = LOGIT_BYTES * V * tokens
    if chunked and V * tokens > LOGIT_CHUNK:
        logits = LOGIT_BYTES * LOGIT_CHUNK + 2 * 4 * V * C + 2 * C * tokens
    return Memory(
        weights=weights,
        gradients=4 * size if accumulate else gradients,
        optimizer=optimizer,
        bf16_weights=2 * (size if shards == 1 else size - max(0, L - 2) * block_parameters(C)),
        activations=kept * tokens,
        logits=logits,
    )


def tokens_per_second(flops_per_token: float, peak: float, mfu: float) -> float:
    """Training tokens a second on one GPU.

    Args:
        flops_per_token: see `flops`.
        peak: of the GPU, FLOP/s.
        mfu: share of the peak that the model gets, 0 to 1.
    """
    return peak * mfu / flops_per_token
