"""Guesses change how fast a text is written, and nothing of what is written."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.turnover import come_and_go

from gpt2.generation.drafting import SHORT, TOKENS, Draft
from gpt2.generation.engine import Engine
from gpt2.generation.load import fastest_reader
from gpt2.generation.native import NativeReader, compiled
from gpt2.generation.reader import Piece, Reader
from gpt2.generation.request import Delta, Request, Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.precision import in_precision
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
END = BYTES.end_of_text
CONTEXT = 40  # three quarters of it go through the compiled reader, so all of a text does
GREEDY = Sampling(temperature=0)
needs_compiler = pytest.mark.skipif(compiled() is None, reason="there is no compiler")


def model(precision: str = "fp32") -> GPT2:
    """Begins to repeat itself soon, as small models do."""
    made = GPT2(GPT2Config(257, context_length=CONTEXT, n_layer=2, n_head=4, n_embd=64))
    made.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0 if name == "wte.weight" else 2.0)
    return in_precision(made.eval(), precision)


class Counting(NativeReader):
    """Counts what is guessed, and how it comes out."""

    def __init__(self, model: GPT2, rows: int, guessing: bool) -> None:
        read_tokens = compiled()
        assert read_tokens is not None
        super().__init__(model, rows, read_tokens)
        assert not self.drafts, "a model so small is as fast without"
        self.drafts = guessing
        self.most = self.guessed = self.readings = 0

    def read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        assert all(self.cache.lengths[piece.row] + len(piece.ids) <= CONTEXT for piece in pieces)
        guesses = sum(piece.answers - 1 for piece in pieces if piece.answers)
        if guesses:
            self.most = max(self.most, sum(len(piece.ids) for piece in pieces))
        self.guessed += guesses
        self.readings += 1
        return super().read(pieces)


def engine(slots: int = 1, guessing: bool = True, precision: str = "fp32") -> tuple[Engine, Counting]:
    made = model(precision)
    reader = Counting(made, slots, guessing)
    return Engine(made, BYTES, slots, reader), reader


def requests(count: int) -> list[Request]:
    """Prompts that repeat themselves or do not, greedy or seeded, many longer than the context."""
    draw = random.Random(count)
    made = []
    for number in range(count):
        prompt = [draw.randrange(256) for _ in range(draw.randrange(1, 9))] * draw.randrange(1, 9)
        sampling = (
            GREEDY,
            Sampling(0.3, 20, 0.95, 0.01, 1.1, 0.2, 0.1, {number: 3.0}, seed=number),
            Sampling(0.05, seed=number),
            Sampling(1.0, seed=number),
        )[number % 4]
        stop = tuple(chr(draw.randrange(128)) + chr(draw.randrange(128)) for _ in range(20 * (number % 5 == 0)))
        ends = frozenset({draw.randrange(256)}) if number % 3 == 0 else frozenset[int]()
        made.append(Request(tuple(prompt), draw.randrange(0, 90), sampling, stop, ends, (None, 0, 3)[number % 3]))
    return made


def answers(made: Engine, asked: Sequence[Request]) -> list[list[Delta]]:
    """All deltas of each answer."""
    deltas: list[list[Delta]] = [[] for _ in asked]
    for number, delta in made.run(asked):
        deltas[number].append(delta)
    return deltas


@needs_compiler
@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_all_that_is_written_is_the_same_bit_for_bit(precision: str, slots: int) -> None:
    asked = requests(60)
    plain, reader = engine(1, guessing=False, precision=precision)
    expected = answers(plain, asked)
    assert not reader.guessed
    assert {deltas[-1].finish for deltas in expected} == {"stop", "length"}
    made, reader = engine(slots, precision=precision)
    assert answers(made, asked) == expected
    assert reader.guessed
    assert reader.most == TOKENS


@needs_compiler
def test_right_guesses_save_readings_and_wrong_ones_are_dropped() -> None:
    made, reader = engine()
    (deltas,) = answers(made, [Request((65, 66, 67) * 5, 60, Sampling(0.4, seed=3))])
    written = sum(len(delta.tokens) for delta in deltas)
    right = written - reader.readings
    assert 0 < right < reader.guessed
    assert all(len(delta.tokens) <= 1 for delta in deltas)


@needs_compiler
def test_texts_that_come_and_go_are_those_without_guesses() -> None:
    asked = requests(24)
    expected = [answers(engine(guessing=False)[0], [request])[0] for request in asked]
    made, reader = engine(3)
    written, cancelled = come_and_go(made, asked, 2)
    assert cancelled
    assert reader.guessed
    for number, deltas in enumerate(written):
        assert deltas == (expected[number][: len(deltas)] if number in cancelled else expected[number])


class Script(Reader):
    """Says a text by heart: what follows each place of it."""

    drafts = True

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(GPT2(GPT2Config(257, CONTEXT, 1, 1, 8)), 1)
        self.script = list(ids)
        self.readings: list[int] = []

    def read(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        (piece,) = pieces
        end = self.cache.lengths[0] + len(piece.ids)
        self.cache.advance(len(piece.ids))
        self.readings.append(len(piece.ids))
        return np.eye(257, dtype=np.float32)[self.script[end - piece.answers + 1 : end + 1]] * 1e4


def test_an_end_within_a_guess_is_an_end() -> None:
    prompt = list(b"abcdefghabcd")
    for rest, options, text, finish in (
        ([*b"ef", END, *b"gh"], {}, "ef", "stop"),
        (list(b"efghabcd"), {"stop_ids": frozenset(b"g")}, "ef", "stop"),
        (list(b"efghabcd"), {"stop": ("fg",)}, "e", "stop"),
        (list(b"efghabcd"), {"max_tokens": 3}, "efg", "length"),
        (list(b"efghabcd"), {"max_tokens": 6}, "efghab", "length"),
        (list(b"eeeeeeee"), {"max_tokens": 6}, "eeeeee", "length"),
    ):
        reader = Script(prompt + rest)
        made = Engine(reader.model, BYTES, 1, reader)
        (deltas,) = answers(made, [Request(tuple(prompt), sampling=GREEDY, **{"max_tokens": 8, **options})])  # type: ignore[arg-type]
        assert ("".join(delta.text for delta in deltas), deltas[-1].finish) == (text, finish)
        assert max(reader.readings[1:]) > 1
        # What was guessed in vain has left no trace: of the same text only the last id is read again.
        said = prompt + [token.id for delta in deltas for token in delta.tokens]
        assert reader.cache.lengths[0] == len(said) - (deltas[-1].tokens != ())
        reader.readings.clear()
        answers(made, [Request(tuple(said), 1, GREEDY)])
        assert reader.readings == [1]


def test_no_more_is_guessed_than_context_and_max_tokens_have_room_for() -> None:
    reader = Script(list(b"ab" * CONTEXT))
    made = Engine(reader.model, BYTES, 1, reader)
    assert "".join(delta.text for delta in answers(made, [Request(tuple(b"ab" * 8), 24, GREEDY)])[0]) == "ab" * 12
    assert sum(reader.readings) == CONTEXT - 1  # all but the last, each once
    assert len(reader.readings) < 10


def test_a_reader_whose_rounding_depends_on_lengths_is_given_no_guesses() -> None:
    made = model()
    lengths: list[int] = []
    made.h[0].register_forward_pre_hook(lambda _module, inputs: lengths.append(inputs[0].shape[1]))
    list(Engine(made, BYTES).generate([65, 66, 67] * 5, 20, GREEDY))
    assert lengths == [15] + [1] * 19


@needs_compiler
def test_a_model_that_caches_cannot_hold_is_given_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fastest_reader(model(), 1).drafts
    monkeypatch.setattr("gpt2.generation.native.BEYOND_CACHES", 2**17)  # the model has a little more
    assert fastest_reader(model(), 1).drafts


@pytest.mark.parametrize("kind", ["torch", pytest.param("native", marks=needs_compiler)])
def test_several_answers_of_a_piece_are_those_of_its_tokens_one_by_one(kind: str) -> None:
    made, ids = model(), list(range(60, 72))
    native = compiled() if kind == "native" else None
    reader = Reader(made, 2) if native is None else NativeReader(made, 2, native)
    alone = np.concatenate([reader.read([Piece(0, [token], 1)]).copy() for token in ids])
    reader.cache.truncate(0, 0)
    pieces = [
        Piece(1, ids[:5], 2),
        Piece(0, ids, len(ids)),
    ]
    together = reader.read(pieces)
    wanted = np.concatenate([alone[3:5], alone])
    np.testing.assert_allclose(together, wanted, rtol=0, atol=1e-4 if native is None else 0)


def test_a_text_is_guessed_to_go_on_as_before() -> None:
    assert Draft(b"abcdefgh").guess(1, 9) == []
    assert Draft(b"abcdefghab").guess(1, 9) == list(b"cde")
    assert Draft(b"abcdabefab").guess(1, 9) == list(b"efa")  # what was last
    assert Draft(b"abcdefghab").guess(1, 2) == list(b"cd")
    assert Draft(b"abcdefghab").guess(2, 9) == []  # among others only where it is surer
    circle = Draft(b"xyz" * 2)
    for token in b"xyz" * 10:
        circle.add(token)
    assert circle.guess(3, 9) == list(b"xyzxyzx")


def test_where_nothing_repeats_guesses_end_and_come_again_where_it_does() -> None:
    draw = random.Random(1)
    draft = Draft([])
    asked = 0
    for _ in range(2000):
        draft.add(draw.randrange(20))
        asked += len(draft.guess(1, SHORT))
    assert asked < 60
    for token in list(range(100, 120)) * 3:
        draft.add(token)
    assert draft.guess(1, SHORT)
