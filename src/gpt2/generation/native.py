"""The reader for CPUs: texts go through `native.cpp`, compiled for this machine when it is first used.

PyTorch reads at a third of the memory's speed where there are few tokens, and spends more on calling than on
reading in small models. Where the processor has no wide products, long pieces stay with it.
"""

import ctypes
import itertools
import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpt2.console import warn_once
from gpt2.generation.reader import Piece, Reader
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.huge_pages import in_huge_pages
from gpt2.native_code import NativeCodeError, load

SOURCE = Path(__file__).with_name("native.cpp")
BEYOND_CACHES = 2**26
"""Bytes of weights that come from memory for each reading: tokens beside one cost little. In caches, each costs."""
TRIED = 64
"""Readings among which one is made by as many threads as are thought slower. It takes up to twice as long."""
FEW = 16
"""Tokens; of more, products take longer than waiting."""
PRECISIONS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float16: 3}


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "scales", "row_sums", "bias")]


class _Norm(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("weight", "bias")]


class _Block(ctypes.Structure):
    _fields_ = [
        ("ln_1", _Norm),
        ("attention", _Matrix),
        ("attention_out", _Matrix),
        ("ln_2", _Norm),
        ("up", _Matrix),
        ("down", _Matrix),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "heads", "width", "vocabulary", "rows", "capacity")),
        ("threads", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("wte", _Matrix),
        ("wpe", ctypes.c_void_p),
        ("ln_f", _Norm),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("blocks", ctypes.POINTER(_Block)),
    ]


class Crew:
    """How many threads read: all, or one where that has been faster of late.

    A small model's matrices take microseconds each, and after each the threads wait for one another. Where other
    programs want the cores, one of them is often away: with three such programs on two cores, 1.6 million weights write
    370 tokens/s with both threads and 1,300 with one; with none, 3,950 and 2,700.

    Args:
        adapts: else all read always.
    """

    def __init__(self, adapts: bool) -> None:
        self._adapts = adapts
        self._readings: Counter[int] = Counter()  # by how many tokens they read
        self._seconds: dict[tuple[int, bool], float] = {}  # of late: by tokens, and whether one thread read alone

    def choose(self, tokens: int) -> int:
        """Threads for a reading of so many tokens."""
        everybody = torch.get_num_threads()
        if not self._adapts or tokens > FEW:
            return everybody
        self._readings[tokens] += 1
        together, alone = (self._seconds.get((tokens, one), math.inf) for one in (False, True))
        return 1 if (alone < together) != self._tries(tokens) else everybody

    def _tries(self, tokens: int) -> bool:
        """Whether this reading is the one among many, the first time soon: the fourth."""
        return self._readings[tokens] % TRIED == 4

    def took(self, tokens: int, threads: int, seconds: float) -> None:
        """Learn from a reading, the last one that `choose` was asked for."""
        if self._adapts and tokens <= FEW:
            key = tokens, threads == 1
            known = self._seconds.get(key, seconds)
            # Where one among many was tried, what was measured long before says nothing.
            self._seconds[key] = seconds if self._tries(tokens) else known + 0.25 * (seconds - known)


class NativeReader(Reader):
    """Reads pieces of all rows at once by a compiled function, very long ones by PyTorch where that is faster.

    Both share all memory.

    Args:
        model: on the CPU, in fp32, or as `in_precision` made it. Its large tensors are moved to other pages.
        rows: texts side by side.
        library: `native.cpp`, from `compiled`.

    Attributes:
        most_tokens: of a piece that is not left to PyTorch.
    """

    def __init__(self, model: GPT2, rows: int, library: ctypes.CDLL) -> None:
        super().__init__(model, rows)
        self._read_tokens = library.read_tokens
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        self._read_tokens.argtypes = (pointer, number, pointer, pointer, pointer, number, pointer, number, pointer)
        self._read_tokens.restype = None
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = in_huge_pages(tensor.data)
        self._tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._logits, self._logits_address = np.empty((0, model.config.vocab_size), np.float32), 0
        self._kept: list[Tensor] = []  # memory that the structure points to
        self._blocks = (_Block * len(model.h))(*(self._block(f"h.{layer}") for layer in range(len(model.h))))
        config = model.config
        self._model = _Model(
            layers=config.n_layer,
            heads=config.n_head,
            width=config.n_embd,
            vocabulary=config.vocab_size,
            rows=rows,
            capacity=self.cache.capacity,
            wte=self._matrix("wte"),
            wpe=self._address(self._tensors["wpe.weight"]),
            ln_f=self._norm("ln_f"),
            keys=self.cache.keys.data_ptr(),
            values=self.cache.values.data_ptr(),
            blocks=self._blocks,
        )
        self._precision_number = PRECISIONS[model.wte.weight.dtype]
        self.most_tokens: int = library.most_tokens(self._precision_number)
        size = sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())
        self.drafts = size > BEYOND_CACHES
        self._crew = Crew(adapts=size <= BEYOND_CACHES)

    def read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """As `Reader.read`; what is compiled needs none of PyTorch's contexts, which take 40 µs a reading."""
        if all(len(piece.ids) <= self.most_tokens for piece in pieces):
            return self._read_short(pieces)
        return super().read(pieces)

    def _read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        short = [piece for piece in pieces if len(piece.ids) <= self.most_tokens]
        answers: dict[int, NDArray[np.float32]] = {}
        if short:
            ends = itertools.accumulate(piece.answers for piece in short)
            parts = np.split(self._read_short(short), list(ends)[:-1])
            answers = dict(zip((piece.row for piece in short), parts, strict=True))
        for piece in pieces:
            if len(piece.ids) > self.most_tokens:
                answers |= {row: logits.float().numpy() for row, logits in self._read_batch([piece]).items()}
        found = [answers[piece.row] for piece in pieces if piece.answers]
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def _read_short(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        """Read pieces of any lengths at once: the logits that are wanted, shape (wanted, V)."""
        lengths = self.cache.lengths
        ids = [token for piece in pieces for token in piece.ids]
        rows = [piece.row for piece in pieces for _ in piece.ids]
        positions = [lengths[piece.row] + place for piece in pieces for place in range(len(piece.ids))]
        ends = itertools.accumulate(len(piece.ids) for piece in pieces)
        wanted = [place for piece, end in zip(pieces, ends, strict=True) for place in range(end - piece.answers, end)]
        assert max(positions) < self.cache.capacity, f"{max(positions) + 1} tokens in a cache of {self.cache.capacity}"
        # After each reading the processor's caches hold weights and nothing of Python, so that every call here costs.
        numbers = array("i", [*ids, *rows, *positions, *wanted])
        if len(self._logits) < len(wanted):
            self._logits = np.empty((len(wanted), self._model.vocabulary), np.float32)
            self._logits_address = self._logits.ctypes.data
        self._model.threads = self._crew.choose(len(ids))
        start, _ = numbers.buffer_info()
        step = numbers.itemsize * len(ids)
        began = time.perf_counter()
        self._read_tokens(
            ctypes.addressof(self._model),
            self._precision_number,
            *(start, start + step, start + 2 * step, len(ids)),
            *(start + 3 * step, len(wanted)),
            self._logits_address,
        )
        self._crew.took(len(ids), self._model.threads, time.perf_counter() - began)
        for piece in pieces:
            self.cache.advance(len(piece.ids), [piece.row])
        return self._logits[: len(wanted)]

    def _address(self, tensor: Tensor) -> int:
        assert tensor.is_contiguous() and tensor.device.type == "cpu", "weights lie in one piece, in the CPU's memory"
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _block(self, name: str) -> _Block:
        return _Block(
            self._norm(f"{name}.ln_1"),
            self._matrix(f"{name}.attn.c_attn"),
            self._matrix(f"{name}.attn.c_proj"),
            self._norm(f"{name}.ln_2"),
            self._matrix(f"{name}.mlp.c_fc"),
            self._matrix(f"{name}.mlp.c_proj"),
        )

    def _matrix(self, name: str) -> _Matrix:
        weight, bias, scale = (self._tensors.get(f"{name}.{part}") for part in ("weight", "bias", "scale"))
        assert weight is not None, f"{name} has no weight"
        return _Matrix(
            weight=self._address(weight),
            bias=self._address(torch.zeros(len(weight)) if bias is None else bias),
            scales=None if scale is None else self._address(scale),
            row_sums=None if scale is None else self._address(weight.sum(dim=1, dtype=torch.float32)),
        )

    def _norm(self, name: str) -> _Norm:
        return _Norm(self._address(self._tensors[f"{name}.weight"]), self._address(self._tensors[f"{name}.bias"]))


def reads(library: ctypes.CDLL, weights: torch.dtype) -> bool:
    """Whether `native.cpp` can read such weights on this machine: fp16 only where the processor multiplies it."""
    return weights in PRECISIONS and library.most_tokens(PRECISIONS[weights]) > 0


def fits(config: GPT2Config) -> bool:
    """Whether `native.cpp` can run a model: its sizes fill registers, as 2 × 96, 4 × 160 and 12 × 768 do."""
    width, head = config.n_embd, config.n_embd // config.n_head
    return width >= 64 and width % 32 == 0 and head % 16 == 0


def compiled() -> ctypes.CDLL | None:
    """`native.cpp` for this machine, compiled once and kept; None where that cannot be, which is said once."""
    try:
        return load(SOURCE, announcement="Compiling the model for this processor, once …")
    except NativeCodeError as error:
        warn_once(f"PyTorch reads instead of compiled code, at up to three times the time: {error}.")
        return None
