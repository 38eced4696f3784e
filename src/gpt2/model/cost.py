"""What a model costs: parameters and arithmetic, from its sizes alone."""

from gpt2.model.gpt2 import GPT2Config


def parameters(config: GPT2Config) -> int:
    """Number of weights: V·C + T·C + L·(12·C² + 13·C) + 2·C; the tied output matrix counts once."""
    C, L = config.n_embd, config.n_layer
    return config.vocab_size * C + config.context_length * C + L * (12 * C * C + 13 * C) + 2 * C


def flops_per_token(config: GPT2Config) -> int:
    """Floating-point operations of one training token, forward and backward.

    6 for each weight that multiplies (positions are only looked up, the tied matrix multiplies once), and
    12·L·C·T for attention's two products (Kaplan et al. 2020, section 2.1; Chowdhery et al. 2022, appendix B).
    The causal half that attention could skip is counted, as is customary.
    """
    multiplying = parameters(config) - config.context_length * config.n_embd
    return 6 * multiplying + 12 * config.n_layer * config.n_embd * config.context_length
