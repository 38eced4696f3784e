"""Smaller weights for inference: in 16 bits, or in 8 with a scale for each output."""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.errors import ConfigError
from gpt2.model.gpt2 import GPT2

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LARGEST_IN_FP16 = 128.0
"""A weight: 24 of it by inputs below 16 are added up in fp16 (`generation/native.cpp`), which ends at 65,504."""


def in_precision(model: GPT2, precision: str) -> GPT2:
    """The model with its matrices in fp32 (as it is), fp16, bf16, or int8. The model given is used up.

    On a GPU int8 saves memory and no time: its matrices are made wider for each product.
    Norms, biases and positions stay in fp32; they are few. The output matrix is stored once, tied, as it was.

    Raises:
        ConfigError: a weight is too large for sums in fp16.
    """
    if precision == "int8":
        return Int8GPT2(model)
    if precision == "fp16":
        largest = largest_weight(model)
        if math.isnan(largest) or largest > LARGEST_IN_FP16:
            raise ConfigError(
                f"A weight of this model is {largest:,.0f}: with such above {LARGEST_IN_FP16:g} sums in fp16 could "
                "overflow.",
                "Choose another precision: bf16 or fp32.",
            )
    if precision in HALVES:
        for matrix in _matrices(model):
            matrix.weight = nn.Parameter(matrix.weight.detach().to(HALVES[precision]), requires_grad=False)
    return model


def precision_of(model: GPT2) -> str:
    """What `in_precision` made of a model."""
    names = {torch.float32: "fp32", torch.int8: "int8", **{dtype: name for name, dtype in HALVES.items()}}
    return names[model.wte.weight.dtype]


def largest_weight(model: GPT2) -> float:
    """Of all matrices, without sign; NaN if one is."""
    ends = [end for matrix in _matrices(model) for end in torch.aminmax(matrix.weight.detach())]
    return torch.stack(ends).abs().max().item()


def _matrices(model: GPT2) -> list[nn.Linear | nn.Embedding]:
    modules = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    return [module for module in modules if module is not model.wpe]


def products_of(model: GPT2) -> contextlib.AbstractContextManager[object]:
    """The context to run a model of any precision in.

    Where the matrices are 16 bits wide, products are; sums and norms stay in 32. What is narrowed for a product is not
    kept for the next one: a recorded graph would go on to read it from where it was.
    """
    weight = model.wte.weight
    if weight.dtype not in HALVES.values():
        return contextlib.nullcontext()
    return torch.autocast(weight.device.type, dtype=weight.dtype, cache_enabled=False)


class Int8GPT2(GPT2):
    """GPT-2 with matrices in 8 bits, made from one in fp32, whose other parts it takes over."""

    def __init__(self, model: GPT2) -> None:
        nn.Module.__init__(self)
        self.config = model.config
        self.wte = Int8Embedding(model.wte.weight)
        self.wpe, self.h, self.ln_f = model.wpe, model.h, model.ln_f
        for name, module in list(self.h.named_modules()):
            if isinstance(module, nn.Linear):
                self.h.set_submodule(name, Int8Linear(module.weight, module.bias))
        self.requires_grad_(False)
        self.eval()

    @property
    def cache_dtype(self) -> torch.dtype:
        """Number format of keys and values in a cache: their error is less than that of the matrices."""
        return torch.bfloat16

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states, shape (…, C), to logits, shape (…, V)."""
        return int8_linear(hidden, self.wte.weight, self.wte.scale)


class Int8Linear(nn.Module):
    """A matrix product with weights in 8 bits, W ≈ weight · scale, a scale for each output.

    Args:
        weight: in floats, shape (outputs, inputs).
        bias: shape (outputs,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = (nn.Buffer(part) for part in quantize_rows(weight.detach()))
        self.bias = nn.Buffer(bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Inputs, shape (…, inputs), to outputs, shape (…, outputs)."""
        return int8_linear(x, self.weight, self.scale) + self.bias


class Int8Embedding(nn.Module):
    """Rows of a matrix in 8 bits.

    Args:
        weight: in floats, shape (V, C).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.scale = (nn.Buffer(part) for part in quantize_rows(weight.detach()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids, shape (…), to rows, shape (…, C), in fp32."""
        return self.weight[tokens].float() * self.scale[tokens, None]


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x · Wᵀ in whole numbers: x is rounded to 8 bits, too, with a scale for each token.

    Args:
        x: floats, shape (…, inputs).
        weight: int8, shape (outputs, inputs).
        scale: shape (outputs,).
    """
    if x.device.type != "cpu":  # other devices' int8 products are particular about shapes
        return F.linear(x, weight.to(x.dtype)) * scale
    numbers, scales = quantize_rows(x.reshape(-1, x.shape[-1]))
    product: Tensor = torch.ops.aten._int_mm(numbers, weight.t())  # int32, (tokens, outputs)
    return (product * scales[:, None] * scale).view(*x.shape[:-1], -1)


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as whole numbers from -127 to 127 of shape (rows, columns), and a scale for each row, shape (rows,)."""
    scale = matrix.abs().amax(dim=-1).clamp(min=1e-20) / 127
    return (matrix / scale[:, None]).round().to(torch.int8), scale
