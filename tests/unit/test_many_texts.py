"""Texts written side by side are those written alone, whoever comes and goes, and rows are free when they are done."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from tests.turnover import come_and_go

from gpt2.errors import CheckpointError
from gpt2.generation.engine import CHUNK, Engine
from gpt2.generation.native import NativeReader, compiled
from gpt2.generation.reader import Reader
from gpt2.generation.request import Request, Sampling
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
NATIVE = pytest.param("native", marks=pytest.mark.skipif(compiled() is None, reason="there is no compiler"))


def model(context: int = 48) -> GPT2:
    """What and where was read decides; ties are unlikely."""
    made = GPT2(GPT2Config(257, context_length=context, n_layer=2, n_head=4, n_embd=64))
    made.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2 and name != "wte.weight":
                parameter.mul_(8.0)
        made.wte.weight[BYTES.end_of_text] = 0.0
    return made.eval()


def engine(slots: int, kind: str = "torch", context: int = 48) -> Engine:
    made = model(context)
    native = compiled() if kind == "native" else None
    return Engine(made, BYTES, slots, Reader(made, slots) if native is None else NativeReader(made, slots, native))


def requests(count: int, longest: int = 90) -> list[Request]:
    """Of all lengths, some alike at the beginning, greedy or seeded, some with penalties and stop strings."""
    draw = random.Random(count)
    shared = [draw.randrange(256) for _ in range(30)]
    made = []
    for number in range(count):
        prompt = [draw.randrange(256) for _ in range(draw.randrange(0, longest))]
        if number % 3 == 0:
            prompt = shared[: draw.randrange(20, 30)] + prompt[:10]
        sampling = Sampling(temperature=0) if number % 2 else Sampling(1.0, 20, 0.95, 0.01, 1.1, 0.2, 0.1, seed=number)
        made.append(
            Request(tuple(prompt), draw.randrange(0, 40), sampling, stop=("S", "*Z") if number % 5 == 0 else ())
        )
    return made


def answers(made: Engine, asked: Sequence[Request]) -> list[tuple[list[int], str, str | None]]:
    """Ids, text and ending of each answer."""
    ids: list[list[int]] = [[] for _ in asked]
    texts, ends = [""] * len(asked), [None] * len(asked)
    for number, delta in made.run(asked):
        ids[number] += [token.id for token in delta.tokens]
        texts[number] += delta.text
        ends[number] = delta.finish  # type: ignore[call-overload]
    return list(zip(ids, texts, ends, strict=True))


@pytest.mark.parametrize("kind", ["torch", NATIVE])
@pytest.mark.parametrize("slots", [2, 7, 50])
def test_an_answer_does_not_depend_on_its_neighbours(slots: int, kind: str) -> None:
    asked = requests(50)
    alone = [answers(engine(1, kind), [request])[0] for request in asked]
    assert answers(engine(slots, kind), asked) == alone
    assert {end for _, _, end in alone} == {"stop", "length"}


def test_texts_come_and_go_between_tokens() -> None:
    made, asked = engine(3), requests(9)
    alone = [answers(engine(1), [request])[0][0] for request in asked]
    written, cancelled = come_and_go(made, asked, 4)
    assert made.active == 0
    assert cancelled
    for number, deltas in enumerate(written):
        ids = [token.id for delta in deltas for token in delta.tokens]
        assert ids == (alone[number][: len(ids)] if number in cancelled else alone[number])


@pytest.mark.parametrize("kind", ["torch", NATIVE])
def test_a_text_whose_numbers_are_none_ends_alone(kind: str) -> None:
    made = model()
    with torch.no_grad():
        made.wpe.weight[20] = math.nan  # the model cannot read a text beyond 20 tokens
    native = compiled() if kind == "native" else None
    spoilt = Engine(made, BYTES, 3, Reader(made, 3) if native is None else NativeReader(made, 3, native))
    asked = [Request(tuple(range(length)), 9, Sampling(temperature=0)) for length in (5, 16, 8)]
    running = {spoilt.admit(request): number for number, request in enumerate(asked)}
    ids: list[list[int]] = [[] for _ in asked]
    errors = []
    while spoilt.active:
        for ticket, delta in spoilt.step():
            if isinstance(delta, CheckpointError):
                errors.append((running[ticket], delta))
            else:
                ids[running[ticket]] += [token.id for token in delta.tokens]
    [(failed, error)] = errors
    assert failed == 1
    assert "NaN" in error.what
    alone = [answers(engine(1, kind), [request])[0][0] for request in asked]
    assert ids == [alone[0], alone[1][:5], alone[2]]


def test_what_is_no_number_is_gone_from_the_row_of_a_text() -> None:
    made = model()
    made.wte.register_forward_hook(
        lambda _module, read, rows: rows.masked_fill((read[0] == 200)[..., None], math.nan)  # (B, T, C)
    )
    spoilt = Engine(made, BYTES, 2)
    long = Request(tuple(range(25)), 9, Sampling(temperature=0))
    short = Request((3, 1, 4), 9, Sampling(temperature=0))
    alone = [answers(engine(1), [request])[0] for request in (long, short)]
    with pytest.raises(CheckpointError):
        answers(spoilt, [Request((*range(15), 200), 9)])
    assert answers(spoilt, [long, short]) == alone
    assert answers(spoilt, [short, long]) == alone[::-1]


def test_rows_are_limited_and_free_again_after_an_end_or_a_cancellation() -> None:
    made = engine(2)
    request = Request((1, 2, 3), 3, Sampling(temperature=0))
    first, second = made.admit(request), made.admit(request)
    assert first is not None
    assert second is not None
    assert made.admit(request) is None
    made.cancel(first)
    made.cancel(first)  # a second time is without effect
    assert made.active == 1
    assert made.admit(request) is not None
    while made.active:
        made.step()
    assert made.admit(request) is not None


def test_a_prompt_longer_than_a_part_is_read_in_parts_while_others_write() -> None:
    context = 3 * CHUNK
    draw = random.Random(1)
    long = Request(tuple(draw.randrange(256) for _ in range(2 * CHUNK + 50)), 4, Sampling(temperature=0))
    short = Request((7,), 12, Sampling(temperature=0))
    alone = [answers(engine(1, context=context), [request])[0] for request in (short, long)]
    made = engine(2, context=context)
    first, second = made.admit(short), made.admit(long)
    steps = [dict(made.step()) for _ in range(3)]
    assert all(first in deltas for deltas in steps)  # whoever writes does not wait
    assert [second in deltas for deltas in steps] == [False, False, True]
    for ticket in (first, second):
        assert ticket is not None
        made.cancel(ticket)
    assert answers(made, [short, long]) == alone


def counted(slots: int) -> tuple[Engine, list[int]]:
    """An engine, and how many tokens it reads, reading by reading."""
    read: list[int] = []

    class Counting(Reader):
        def read(self, pieces):  # type: ignore[no-untyped-def]
            read.append(sum(len(piece.ids) for piece in pieces))
            return super().read(pieces)

    made = model()
    return Engine(made, BYTES, slots, Counting(made, slots)), read


def test_a_beginning_that_was_read_before_is_not_read_again() -> None:
    counting, read = counted(2)
    prompt = tuple(range(30))
    first = answers(counting, [Request((*prompt, 99), 6, Sampling(temperature=0))])
    assert read[0] == 31
    read.clear()
    assert answers(counting, [Request((*prompt, 42), 6, Sampling(temperature=0))]) != first
    assert read[0] == 1  # the rest lay in the cache
    assert answers(counting, [Request((*prompt, 99), 6, Sampling(temperature=0))]) == first
    # Two at once: the second waits for the first, and takes over what both have in common.
    fresh, read = counted(2)
    both = answers(fresh, [Request((*prompt, token), 6, Sampling(temperature=0)) for token in (99, 42)])
    assert both[0] == first[0]
    assert sum(read) == 31 + 1 + 5 + 5


def test_a_prompt_that_many_have_in_common_is_read_once() -> None:
    counting, read = counted(5)
    answers(counting, [Request((*range(30), last), 1, Sampling(temperature=0)) for last in range(40, 45)])
    assert read == [31, 4]


@pytest.mark.parametrize("kind", ["torch", NATIVE])
def test_log_probabilities_are_the_models_own(kind: str) -> None:
    made, prompt = engine(1, kind), [3, 1, 4, 1, 5]
    ids, told = list(prompt), []
    request = Request(tuple(prompt), 6, Sampling(0.5, 3, seed=1, logit_bias={9: 5.0}), logprobs=4)
    for _, delta in made.run([request]):
        told += list(delta.tokens)
    with torch.no_grad():
        for token in told:
            expected = model()(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
            assert token.logprob == pytest.approx(expected[token.id].item(), abs=1e-4)
            assert [value for _, value in token.alternatives] == pytest.approx(expected.topk(4)[0].tolist(), abs=1e-4)
            ids.append(token.id)
    assert len(told) == 6


def test_ids_that_the_tokenizer_does_not_have_are_named() -> None:
    for request in (
        Request((257,), 1),
        Request((1,), 1, Sampling(logit_bias={-1: 1.0})),
        Request((1,), 1, stop_ids=frozenset({300})),
    ):
        with pytest.raises(Exception, match=r"there is no token (257|-1|300)"):
            engine(1).admit(request)
