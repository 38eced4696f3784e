"""The sizes of GPT-2 by name: OpenAI's four, and small ones for laptops and lessons."""

from typing import NamedTuple


class Shape(NamedTuple):
    """The numbers that fix a GPT-2's size, its vocabulary apart."""

    n_layer: int
    n_head: int
    n_embd: int
    context_length: int


PRESETS: dict[str, Shape] = {
    "gpt2-nano": Shape(n_layer=3, n_head=3, n_embd=48, context_length=64),
    "gpt2-micro": Shape(n_layer=4, n_head=4, n_embd=128, context_length=128),
    "gpt2-mini": Shape(n_layer=6, n_head=6, n_embd=192, context_length=256),
    "gpt2-midi": Shape(n_layer=8, n_head=8, n_embd=512, context_length=512),
    "gpt2": Shape(n_layer=12, n_head=12, n_embd=768, context_length=1024),
    "gpt2-medium": Shape(n_layer=24, n_head=16, n_embd=1024, context_length=1024),
    "gpt2-large": Shape(n_layer=36, n_head=20, n_embd=1280, context_length=1024),
    "gpt2-xl": Shape(n_layer=48, n_head=25, n_embd=1600, context_length=1024),
}
