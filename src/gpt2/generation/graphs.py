"""The reader for NVIDIA's GPUs: a token of every text at once, as a graph of kernels that was recorded before.

A token takes some 330 small kernels in a model of 12 layers, and a GPU is done with each of them before Python has
asked for the next. A recorded graph is asked for once ("CUDA graphs").
"""

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
"""Readings of one length after which it is recorded. Recording costs about as many: so at worst, where a text ends
right then, reading took twice its time."""

Step = Callable[[], Tensor]
"""From tensors that stay where they are to another."""


def recorded(step: Step, device: torch.device) -> Step:
    """The kernels that a step asks for now, on the same memory, whenever it is called.

    Args:
        step: has run before: libraries make their workspaces then.
        device: where it runs.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        answer = step()

    def replay() -> Tensor:
        graph.replay()
        return answer

    return replay


class GraphReader(Reader):
    """Reads pieces of one token by graphs, all rows at once; longer ones as `Reader` does.

    A graph is compared with what it was recorded from before it is used. Where it cannot be recorded or says something
    else, that is said, and PyTorch goes on without.

    Args:
        model: on a GPU, in any precision; its weights stay where they are.
        rows: texts side by side.
        record: what makes a step that can be repeated.
    """

    def __init__(self, model: GPT2, rows: int, record: Callable[[Step, torch.device], Step] = recorded) -> None:
        super().__init__(model, rows)
        self._inputs = torch.zeros(3, rows, dtype=torch.long, device=self.cache.keys.device)
        self._record: Callable[[Step, torch.device], Step] | None = record
        self._graphs: dict[int, Step] = {}  # by the length attended to
        self._readings = Counter[int]()

    def _read_batch(self, batch: Sequence[Piece]) -> dict[int, Tensor]:
        if len(batch[0].ids) > 1:
            return super()._read_batch(batch)
        inputs = torch.zeros(3, len(self.cache.lengths), dtype=torch.long)
        inputs[1] = torch.tensor(self.cache.lengths)
        for piece in batch:
            inputs[0, piece.row], inputs[2, piece.row] = piece.ids[0], 1
        self._inputs.copy_(inputs)
        logits = self._logits(1 + max(self.cache.lengths[piece.row] for piece in batch))  # (rows, V)
        self.cache.advance(1, [piece.row for piece in batch])
        return {piece.row: logits[piece.row, None] for piece in batch if piece.answers}

    def _logits(self, longest: int) -> Tensor:
        """Of all rows, the longest of which is so long: shape (rows, V)."""
        end = min(self.cache.capacity, max(LEAST_LENGTH, 1 << (longest - 1).bit_length()))
        if end in self._graphs:
            return self._graphs[end]()
        logits = self._step(end)
        self._readings[end] += 1
        if self._record is not None and self._readings[end] >= WORTH:
            self._try_to_record(end, logits)
        return logits

    def _step(self, end: int) -> Tensor:
        tokens, lengths, reading = self._inputs
        hidden = self.model.hidden_states(tokens[:, None], PastOfAll(self.cache, lengths, reading > 0, end))
        return self.model.logits(hidden[:, 0])

    def _try_to_record(self, end: int, logits: Tensor) -> None:
        """Use a graph from now on, if it says what was said without."""
        assert self._record is not None
        reading = self._inputs[2] > 0
        try:
            graph = self._record(lambda: self._step(end), self._inputs.device)
            off = (graph() - logits)[reading].abs().nan_to_num().max()
            if off <= 0.01 * logits[reading].abs().nan_to_num().max():
                self._graphs[end] = graph
                return
            why = f"it is off by {off.item():.2g}"
        except RuntimeError as error:
            why = str(error).partition("\n")[0]
        self._record = None
        self._graphs.clear()
        warn(f"Reading could not be recorded as a CUDA graph: {why}. It goes on without, and more slowly.")
