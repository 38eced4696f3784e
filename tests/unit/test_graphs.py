"""Reading by recorded graphs says what reading without says, whatever the texts; and where it cannot, it does not."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tests.unit.test_many_texts import BYTES, answers, engine, model, requests
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gpt2.generation.engine import Engine
from gpt2.generation.graphs import GraphReader, Step
from gpt2.generation.reader import Piece, Reader
from gpt2.model.precision import in_precision

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))


class Traced:
    """Records as CUDA does, on any device: operations with the memory that they were done on, and nothing else."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, step: Step) -> Step:
        self.recordings += 1
        operations = make_fx(step)()

        def replay() -> Tensor:
            self.replays += 1
            return operations()

        return replay


def reader(kind: str, slots: int, precision: str = "fp32", context: int = 300) -> tuple[GraphReader, Traced]:
    """Of the tests' model; on a CPU traced."""
    made, record = in_precision(model(context), precision).to(kind), Traced()
    return GraphReader(made, slots) if kind == "cuda" else GraphReader(made, slots, record), record


@pytest.mark.parametrize("kind", ["cpu", CUDA])
@pytest.mark.parametrize("slots", [1, 7])
def test_texts_are_those_that_are_written_without(slots: int, kind: str) -> None:
    asked = requests(30, longest=280)
    graph_reader, record = reader(kind, slots)
    assert answers(Engine(graph_reader.model, BYTES, slots, graph_reader), asked) == answers(
        Engine(model(300).to(kind), BYTES, slots), asked
    )
    lengths = {128, 256, 300} if slots == 1 else {256, 300}  # of several texts there is always a longer one
    assert graph_reader._graphs.keys() == lengths
    if kind == "cpu":
        assert record.recordings == len(lengths)
        assert record.replays > 50


def read(made: Reader, turns: Sequence[Sequence[tuple[int, int]]]) -> list[Tensor]:
    """Logits of each turn, which gives some rows a token: (row, id)."""
    return [torch.tensor(made.read([Piece(row, [token], 1) for row, token in turn])) for turn in turns]


@pytest.mark.parametrize("kind", ["cpu", CUDA])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_logits_are_those_of_the_same_operations(precision: str, kind: str) -> None:
    turns = [[(row, (5 * turn + row) % 256) for row in range(3) if (turn + row) % 3 or turn < 9] for turn in range(60)]
    graph_reader, _ = reader(kind, 3, precision)
    graphed = read(graph_reader, turns)
    assert len(graph_reader._graphs) == 1
    unrecorded = GraphReader(in_precision(model(300), precision).to(kind), 3, lambda step: step)
    slack = 0.0 if kind == "cpu" else 0.01
    for one, other in zip(graphed, read(unrecorded, turns), strict=True):
        torch.testing.assert_close(one, other, rtol=slack, atol=slack)


def test_a_recording_holds_nothing_but_the_model_its_cache_and_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else it held would be gone, on a GPU, when it is repeated; so would the copies that autocast keeps."""
    held: list[Tensor] = []

    def record(step: Step) -> Step:
        assert not torch.is_autocast_cache_enabled()
        operations = make_fx(step)()
        held.extend(value for value in vars(operations).values() if isinstance(value, Tensor))
        held.extend(operations.buffers())
        held.extend(operations.parameters())
        return operations

    made = in_precision(model(), "bf16")
    graph_reader = GraphReader(made, 2, record)
    read(graph_reader, [[(0, 1), (1, 2)]] * 20)
    lasting = [*made.state_dict().values(), graph_reader.cache.keys, graph_reader.cache.values, graph_reader._inputs]
    assert graph_reader._graphs
    assert len(held) > 10
    memory = {tensor.untyped_storage().data_ptr() for tensor in lasting}
    assert all(tensor.untyped_storage().data_ptr() in memory for tensor in held)


def test_rows_that_do_not_read_keep_what_they_have() -> None:
    graph_reader, _ = reader("cpu", 3, context=20)
    read(graph_reader, [[(row, 7 * turn + row) for row in range(3)] for turn in range(20)])
    cache = graph_reader.cache
    cache.truncate(1, 4)
    before = [part.clone() for part in (cache.keys, cache.values)]
    read(graph_reader, [[(1, 9)]] * 16)  # the others are full
    for part, kept in zip((cache.keys, cache.values), before, strict=True):
        assert torch.equal(part[:, 0], kept[:, 0])
        assert torch.equal(part[:, 1, :, :4], kept[:, 1, :, :4])
        assert torch.equal(part[:, 2], kept[:, 2])
        assert not torch.equal(part[:, 1], kept[:, 1])


def refuse(step: Step) -> Step:
    raise RuntimeError("operation not permitted when stream is capturing\nand a long story")


def say_something_else(step: Step) -> Step:
    return lambda: step() + 1


def say_nothing(step: Step) -> Step:
    return lambda: step() * float("nan")


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (refuse, "when stream is capturing. It"),
        (say_something_else, "something else. It"),
        (say_nothing, "something else. It"),
    ],
)
def test_where_it_cannot_be_recorded_reading_goes_on_without(
    record: Callable[[Step], Step], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model()
    asked = requests(12)
    assert answers(Engine(made, BYTES, 3, GraphReader(made, 3, record)), asked) == answers(engine(3), asked)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("could not be recorded as a CUDA graph") == 1
    assert why in said
