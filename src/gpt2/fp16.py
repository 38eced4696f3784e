"""Training on a CPU whose processor multiplies numbers of 16 bits twice as fast as any others: AVX512-FP16, no AMX.

`fp16.cpp` narrows what it multiplies; all else, weights and sums too, stays in fp32.
"""

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from gpt2.native_code import NativeCodeError, load

SOURCE = Path(__file__).with_suffix(".cpp")
LEAST_WORK = 2**22
"""Multiplications below which nothing is gained."""
LEAST_REUSE = 64
"""Multiplications for each number that is narrowed; below, that takes what the product gains."""


def missing() -> str:
    """What this machine lacks to train in fp16, in words; empty if nothing."""
    if not has_instructions():
        return "its processor has no AVX512-FP16"
    try:
        _library()
    except NativeCodeError as error:
        return str(error)
    return ""


@functools.cache
def has_instructions() -> bool:
    """Whether the processor has AVX512-FP16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.startswith("flags") and "avx512_fp16" in line.split() for line in lines)


@functools.cache
def _library() -> ctypes.CDLL:
    library = load(SOURCE, "-fno-trapping-math", announcement="Compiling training for this processor, once …")
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    library.scratch_bytes.argtypes = (size, size, number)
    library.scratch_bytes.restype = size
    library.product.argtypes = (
        *(pointer, size, size),
        *(pointer, size, size),
        *(pointer, pointer, size, size, size, pointer, number),
    )
    library.gelu.argtypes = (pointer, pointer, size, number)
    library.gelu_backward.argtypes = (pointer, pointer, pointer, size, number)
    for function in (library.product, library.gelu, library.gelu_backward):
        function.restype = None
    return library


class HalfProducts(TorchFunctionMode):
    """While active, linear maps, products of two matrices and GELU of fp32 tensors on the CPU are compiled code's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """What `func` gives; not in here, this is not active."""
        given: Mapping[str, Any] = kwargs or {}
        if func is F.linear and not given and all(map(_is_ours, args)):
            return _Linear.apply(*args, *([None] if len(args) == 2 else []))
        if func is F.gelu and given == {"approximate": "tanh"} and _is_ours(args[0]):
            return _GELU.apply(args[0])
        if func is Tensor.matmul and all(_is_ours(side) and side.dim() == 2 for side in args) and not _learns(args):
            return product(*args)
        return func(*args, **given)


def _is_ours(tensor: Tensor | None) -> bool:
    return tensor is None or (
        type(tensor) in (Tensor, torch.nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
    )


def _learns(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a · b + bias, within about 0.15 % of what the sums of squares say; exactly where it would be no faster so.

    Args:
        a: fp32, shape (rows, inner).
        b: fp32, shape (inner, columns).
        bias: fp32, shape (columns,).

    Returns:
        Shape (rows, columns).
    """
    (rows, inner), columns = a.shape, b.shape[1]
    if rows * columns * inner < LEAST_WORK or rows * columns < LEAST_REUSE * (rows + columns):
        return a @ b if bias is None else torch.addmm(bias, a, b)
    a, b = (side if 1 in side.stride() else side.contiguous() for side in (a, b))
    library, threads = _library(), torch.get_num_threads()
    bias = None if bias is None else bias.contiguous()
    c = torch.empty(rows, columns)
    scratch = torch.empty(library.scratch_bytes(columns, inner, threads), dtype=torch.uint8)
    library.product(
        *(a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride()),
        *(None if bias is None else bias.data_ptr(), c.data_ptr(), rows, columns, inner, scratch.data_ptr(), threads),
    )
    return c


class _Linear(torch.autograd.Function):
    """x · Wᵀ + b, forward and backward in three products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.T, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, outer: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        x_wanted, weight_wanted, bias_wanted = ctx.needs_input_grad
        shape, outer = outer.shape, outer.reshape(-1, outer.shape[-1])
        return (
            product(outer, weight).view(*shape[:-1], -1) if x_wanted else None,
            product(outer.T, rows) if weight_wanted else None,
            outer.sum(0) if bias_wanted else None,
        )


class _GELU(torch.autograd.Function):
    """x · (1 + tanh(√(2/π) · (x + 0.044715 · x³))) / 2 (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _library().gelu(x.data_ptr(), y.data_ptr(), x.numel(), torch.get_num_threads())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        outer, inner = outer.contiguous(), torch.empty_like(x)
        pointers = (x.data_ptr(), outer.data_ptr(), inner.data_ptr())
        _library().gelu_backward(*pointers, x.numel(), torch.get_num_threads())
        return inner
