"""The pieces of a stream: those that are written in a frame say what a whole one would."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.chat.template import ChatFormat
from gpt2.generation.request import Delta, Request
from gpt2.serve.answer import Answer
from gpt2.serve.asking import Asked
from gpt2.serve.model import ServedModel
from gpt2.serve.writers import MARK, ChatWriter, CompletionWriter, Writer
from tests.serve.fake import BYTES, CONTEXT
from tests.serve.harness import TEMPLATE

NAME = f'a "model" {MARK}\\u0000'


def events(writer: Writer, deltas: Sequence[tuple[int, Delta]], answers: int) -> list[Any]:
    """What a client reads, without the last line."""

    async def read() -> list[bytes]:
        answer = Answer(answers, "a client")
        for index, delta in deltas[1:]:
            answer.put(index, delta)
        answer.open -= deltas[0][1].finish is not None
        return [event async for event in writer.stream(deltas[0], answer)]

    written = asyncio.run(read())
    assert written[-1] == b"data: [DONE]\n\n"
    assert all(event.count(b"\n") == 2 and b"\r" not in event for event in written)
    return [json.loads(event.removeprefix(b"data: ")) for event in written[:-1]]


@pytest.mark.parametrize("kind", [CompletionWriter, ChatWriter])
@given(
    st.lists(st.tuples(st.integers(0, 1), st.text() | st.sampled_from([" ", "\n", MARK, '"', "\u2028"])), max_size=12),
    st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_every_piece_says_what_one_made_by_itself_would(
    kind: type[Writer], texts: list[tuple[int, str]], with_usage: bool
) -> None:
    model = ServedModel(NAME, 1_700_000_000, BYTES, CONTEXT, ChatFormat.from_template(TEMPLATE), None)
    asked = Asked([Request((1,), 9)] * 2, 3, ["an echo", ""])
    deltas = [
        *((index, Delta(text, ())) for index, text in texts),
        (0, Delta("!", (), "stop")),
        (1, Delta("", (), "length")),
    ]
    framed, plain = (kind(asked, model, False, with_usage) for _ in range(2))
    plain.id, plain.created = framed.id, framed.created
    expected = [piece for index, delta in deltas if (piece := plain.piece(index, delta)) is not None]
    without = set() if with_usage else {"usage"}
    expected += [plain.last_piece()] if with_usage else []
    assert events(framed, deltas, 2) == [json.loads(piece.model_dump_json(exclude=without)) for piece in expected]


def test_the_role_stands_in_the_first_piece_of_an_answer_only() -> None:
    model = ServedModel(NAME, 1_700_000_000, BYTES, CONTEXT, ChatFormat.from_template(TEMPLATE), None)
    writer = ChatWriter(Asked([Request((1,), 9)] * 2, 3, ["", ""]), model, False, False)
    deltas = [(index, Delta(text, ())) for text in "abc" for index in (0, 1)]
    ends = [(index, Delta("", (), "stop")) for index in (0, 1)]
    told = [event["choices"][0]["delta"] for event in events(writer, [*deltas, *ends], 2)]
    assert told[:2] == [{"role": "assistant", "content": "a"}] * 2
    assert all(delta.keys() == {"content"} for delta in told[2:])
