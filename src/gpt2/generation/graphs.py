"""The reader for NVIDIA's GPUs: a token of every text at once, as a graph of kernels that was recorded before.

A token takes some 330 small kernels in a model of 12 layers, and a GPU is done with each of them before Python has
asked for the next. A recorded graph is asked for once ("CUDA graphs").
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpt2.console import warn
from gpt2.generation.reader import Piece, Reader
from gpt2.model.gpt2 import GPT2
from gpt2.model.kv_cache import PastOfAll

LEAST_LENGTH = 128
"""Tokens attended to by the shortest graph; each further one has twice as many, up to the context."""
WORTH = 16
"""Readings of one length until it is recorded: a short answer is not worth it. What that costs was not measured."""

Step = Callable[[], Tensor]
"""From tensors that stay where they are to another."""


class Recorder:
    """Makes CUDA graphs, which share the memory for what lies between their ends: one runs at a time.

    Args:
        device: where they run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        """The kernels that a step asks for now, on the same memory, whenever it is called.

        The step has run before: kernels are loaded then.
        """
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream(self._device)
        recording = torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local")
        try:
            with torch.cuda.device(self._device), recording:
                answer = step()
        finally:
            torch.cuda.set_stream(before)  # a recording that fails does not do so

        def replay() -> Tensor:
            graph.replay()
            return answer

        return replay


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """To record on: libraries keep tens of MiB for each stream that they have seen, for good."""
    return torch.cuda.Stream(device)


class GraphReader(Reader):
    """Reads pieces of one token by graphs, all rows at once; longer ones as `Reader` does.

    A graph is compared with what it was recorded from before it is used. Where it cannot be recorded or says something
    else, that is said, and PyTorch goes on without.

    Args:
        model: on a GPU, in any precision; its weights stay where they are.
        rows: texts side by side.
        record: what makes a step that can be repeated; else a `Recorder`.
    """

    def __init__(self, model: GPT2, rows: int, record: Callable[[Step], Step] | None = None) -> None:
        super().__init__(model, rows)
        device = self.cache.keys.device
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=device)
        self._record = Recorder(device) if record is None else record
        self._graphs: dict[int, Step] = {}  # by the length attended to
        self._readings = Counter[int]()
        self._failed = False
        """Whether one could not be recorded: no other is tried."""

    def _read_batch(self, batch: Sequence[Piece]) -> dict[int, Tensor]:
        if len(batch[0].ids) > 1:
            return super()._read_batch(batch)
        longest = 1 + max(self.cache.lengths[piece.row] for piece in batch)
        end = min(self.cache.capacity, max(LEAST_LENGTH, 1 << (longest - 1).bit_length()))
        self._readings[end] += 1
        if self._readings[end] < WORTH or (end not in self._graphs and self._failed):
            return super()._read_batch(batch)
        inputs = torch.zeros(3, len(self.cache.lengths), dtype=torch.long)
        inputs[1] = torch.tensor(self.cache.lengths)
        for piece in batch:
            inputs[0, piece.row], inputs[2, piece.row] = piece.ids[0], 1
        self._inputs.copy_(inputs)
        logits = self._graphs[end]() if end in self._graphs else self._recorded(end)  # (rows, V)
        self.cache.advance(1, [piece.row for piece in batch])
        return {piece.row: logits[piece.row, None] for piece in batch if piece.answers}

    def _step(self, end: int) -> Tensor:
        """The logits of all rows, shape (rows, V), the longest of which is not longer than that."""
        tokens, lengths, reading = self._inputs
        hidden = self.model.hidden_states(tokens[:, None], PastOfAll(self.cache, lengths, reading > 0, end))
        return self.model.logits(hidden[:, 0])

    def _recorded(self, end: int) -> Tensor:
        """A step without a graph, and the graph, if it says the same."""
        logits, reading = self._step(end), self._inputs[2] > 0
        try:
            graph = self._record(lambda: self._step(end))
            one, other = logits[reading].float(), graph()[reading].float()
            # The same operations: they may add up in another order, but no more.
            slack = 0.01 * one.nan_to_num(0, 0, 0).abs().max().item()
            if torch.allclose(one, other, rtol=0.01, atol=slack, equal_nan=True):
                self._graphs[end] = graph
                return logits
            why = "it says something else"
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
        self._failed = True
        warn(f"Reading could not be recorded as a CUDA graph: {why}. It goes on without, and more slowly.")
        return logits
