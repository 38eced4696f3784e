"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), as OpenAI trained it.

A decoder-only transformer: token and position embeddings, pre-norm blocks of causal self-attention and a
four times wider MLP, a last layer norm, and an output matrix that is the token embedding itself.
Biases are on, GELU is the tanh form, layer-norm epsilon is 1e-5, so OpenAI's weights give OpenAI's logits.

Shapes:
    B  sequences in the batch        H  attention heads
    T  tokens of a sequence          D  numbers per head, C / H
    C  width (n_embd)                V  vocabulary size
    S  tokens attended to: the cached ones and the T new ones
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.attention import attend
from gpt2.model.kv_cache import KVCache, Past


@dataclass(frozen=True, slots=True)
class GPT2Config:
    """What fixes the network: five sizes and the dropout of training."""

    vocab_size: int
    context_length: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        assert config.n_embd % config.n_head == 0, f"{config.n_head} heads do not divide a width of {config.n_embd}"
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).split(C, dim=2)  # (B, T, C) each
        )
        mask = None
        if past is not None:
            k, v = past.store(self.layer, k, v)  # (B, H, S, D)
            mask = past.mask
        dropout = self.dropout if self.training else 0.0
        y = attend(q.to(k.dtype), k, v, mask, mask is None and T > 1, dropout).to(q.dtype)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    """The position-wise network: four times as wide inside, GELU in the tanh form (Hendrycks & Gimpel 2016)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C)
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    """Attention, then MLP, each reading a normalised copy of the residual stream and adding to it."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, past: Past | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The whole model: token ids in, logits of the next token out.

    Weights bear OpenAI's names (wte, wpe, h.0.attn.c_attn, …), so that exchange with other tools is a matter of
    transposing four matrices a block.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def forward(self, tokens: Tensor, cache: KVCache | None = None, rows: Sequence[int] | None = None) -> Tensor:
        """Logits of the token after each given one.

        Args:
            tokens: ids, shape (B, T), of the text from its beginning or from where the cache ends.
            cache: keys and values of the tokens before these. It is written to; the caller advances it by T.
            rows: which rows of the cache these are, B of them; else all.

        Returns:
            Logits, shape (B, T, V).
        """
        past = None if cache is None else Past(cache, rows, tokens.shape[1])
        return self.logits(self.hidden_states(tokens, past))

    def hidden_states(self, tokens: Tensor, past: Past | None = None) -> Tensor:
        """What the output matrix reads, for ids of shape (B, T) and what was before them: shape (B, T, C)."""
        T = tokens.shape[1]
        end = T if past is None else past.end
        assert end <= self.config.context_length, f"{end} tokens in a context of {self.config.context_length}"
        positions = torch.arange(T, device=tokens.device) if past is None else past.positions  # (T,) or (B, T)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            # The residual stream in 16 bits, too: half of the bytes of all that is no matrix product.
            x = x.to(torch.get_autocast_dtype("cuda"))
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = block(x, past)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states, shape (…, C), to logits, shape (…, V)."""
        return F.linear(hidden, self.output_matrix)

    @property
    def output_matrix(self) -> Tensor:
        """Hidden states to logits, shape (V, C): the embedding of tokens itself."""
        return self.wte.weight

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Set all weights as OpenAI did (gpt-2/src/model.py; residual scaling from section 2.3 of the paper).

        Matrices and token embeddings from N(0, 0.02), positions from N(0, 0.01), biases 0, norms 1. The matrices
        that write to the residual stream are divided by sqrt(2 · n_layer), so that its variance does not grow
        with depth: each of the n_layer blocks adds to it twice.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = 0.01 if name == "wpe.weight" else 0.02
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                parameter.normal_(0.0, std, generator=generator)

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> KVCache:
        """An empty cache for this model, as long as its context unless `capacity` says less."""
        return KVCache(
            n_layer=self.config.n_layer,
            n_head=self.config.n_head,
            head_size=self.config.n_embd // self.config.n_head,
            capacity=self.config.context_length if capacity is None else capacity,
            batch=batch,
            dtype=self.cache_dtype,
            device=self.wte.weight.device,
        )

    @property
    def cache_dtype(self) -> torch.dtype:
        """Number format of keys and values in a cache."""
        return self.wte.weight.dtype
