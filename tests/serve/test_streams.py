"""The pieces of a stream: those that are written in a frame say what a whole one would."""

import asyncio
import itertools
import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.chat.template import ChatFormat
from gpt2.generation.request import Delta, Request
from gpt2.serve.answer import Answer
from gpt2.serve.asking import Asked
from gpt2.serve.model import ServedModel
from gpt2.serve.worker import PACE
from gpt2.serve.writers import MARK, ChatWriter, CompletionWriter, Writer
from tests.serve.fake import BYTES, CONTEXT, FakeEngine
from tests.serve.harness import TEMPLATE, Running, completion, post, read_all, serving, status_of, until

NAME = f'a "model" {MARK}\\u0000'


def events(
    writer: Writer, deltas: Sequence[tuple[int, Delta]], answers: int, come: Iterator[tuple[bool, bool]]
) -> list[Any]:
    """What a client reads, without the last line.

    Args:
        writer: writes it.
        deltas: the first is there from the start.
        answers: how many end.
        come: for each of the others, whether the writer is waiting for it, and whether the network takes something.
    """
    sent: list[bytes] = []
    takes = False

    def write(piece: bytes) -> bool:
        if takes:
            sent.append(piece)
        return takes

    async def read() -> None:
        nonlocal takes
        answer = Answer(answers, "a client")
        answer.open -= deltas[0][1].finish is not None

        async def follow() -> None:
            async for piece in writer.stream(deltas[0], answer, write):
                await asyncio.sleep(0)  # the network is busy: nothing may overtake this piece
                sent.append(piece)

        following = asyncio.ensure_future(follow())
        for index, delta in deltas[1:]:
            waits, takes = next(come)
            for _ in range(10 * waits):
                await asyncio.sleep(0)
            answer.put(index, delta)
        await following

    asyncio.run(read())
    *pieces, end = b"".join(sent).removesuffix(b"\n\n").split(b"\n\n")
    assert end == b"data: [DONE]"
    assert all(b"\n" not in piece and b"\r" not in piece for piece in pieces)
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces]


@pytest.mark.parametrize("kind", [CompletionWriter, ChatWriter])
@given(
    st.lists(st.tuples(st.integers(0, 1), st.text() | st.sampled_from([" ", "\n", MARK, '"', "\u2028"])), max_size=12),
    st.booleans(),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=14, max_size=14),
)
@settings(max_examples=100, deadline=None)
def test_every_piece_says_what_one_made_by_itself_would(
    kind: type[Writer], texts: list[tuple[int, str]], with_usage: bool, come: list[tuple[bool, bool]]
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
    assert events(framed, deltas, 2, iter(come)) == [
        json.loads(piece.model_dump_json(exclude=without)) for piece in expected
    ]


def test_the_role_stands_in_the_first_piece_of_an_answer_only() -> None:
    model = ServedModel(NAME, 1_700_000_000, BYTES, CONTEXT, ChatFormat.from_template(TEMPLATE), None)
    writer = ChatWriter(Asked([Request((1,), 9)] * 2, 3, ["", ""]), model, False, False)
    deltas = [(index, Delta(text, ())) for text in "abc" for index in (0, 1)]
    ends = [(index, Delta("", (), "stop")) for index in (0, 1)]
    told = [
        event["choices"][0]["delta"] for event in events(writer, [*deltas, *ends], 2, itertools.repeat((True, True)))
    ]
    assert told[:2] == [{"role": "assistant", "content": "a"}] * 2
    assert all(delta.keys() == {"content"} for delta in told[2:])


def stream_of(running: Running, version: str, **fields: Any) -> list[Any]:
    """What a bare client reads in a stream without chunks, or with some that it puts together."""
    body = completion(stream=True, stream_options={"include_usage": True}, **fields)
    answer = running.raw(post(body).replace(b"HTTP/1.1", version.encode(), 1))
    assert status_of(answer) == 200
    head, _, content = answer.partition(b"\r\n\r\n")
    if b"chunked" in head.lower():
        whole = b""
        while content:
            size, _, content = content.partition(b"\r\n")
            whole, content = whole + content[: int(size, 16)], content[int(size, 16) + 2 :]
        content = whole
    *pieces, end = content.removesuffix(b"\n\n").split(b"\n\n")
    assert end == b"data: [DONE]"
    return [json.loads(piece.removeprefix(b"data: ")) for piece in pieces]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_text_comes_whole_and_in_as_many_pieces_as_can_be_read(version: str) -> None:
    said = "".join(map(str, range(1000)))
    with serving(FakeEngine(says=lambda _: said.encode(), seconds=0.0001), context_length=10**4) as running:
        began = time.monotonic()
        *pieces, last = stream_of(running, version, max_tokens=2000)
        seconds = time.monotonic() - began
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == said[:2000]
        assert last["usage"]["completion_tokens"] == 2000
        assert len(pieces) <= seconds / PACE + 3
        *pieces, _ = stream_of(running, version, max_tokens=2000, logprobs=0)
        assert [piece["choices"][0]["text"] for piece in pieces] == list(said[:2000])


def test_what_was_written_is_told_before_the_error_that_ends_it() -> None:
    engine = FakeEngine(says=lambda _: b"abcdefgh" * 100, seconds=0.004)
    with serving(engine, context_length=10**4) as running:
        with running.connect() as connection:
            connection.sendall(post(completion(stream=True, max_tokens=800)))
            written = running.service.metrics.written._value
            until(lambda: written.get() >= 3)  # of which the first has been told, unless this machine is busy
            engine.fail = RuntimeError("this step")
            answer = read_all(connection)
        texts = re.findall(rb'"text":"(\w+)"', answer)
        assert len(b"".join(texts)) == written.get()
        assert b"engine_failed" in answer
