"""Text comes out whole: no broken characters, nothing of a stop string, nothing that a terminal would obey."""

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.errors import ConfigError
from gpt2.generation.stream import TextStream, printable, text_pieces, write
from gpt2.tokenizer.bpe import BytePairTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])  # the id is the byte
MIXED = "a é 漢字 🤖👩‍👩‍👧 z"


def test_characters_split_over_tokens_come_out_whole() -> None:
    pieces = list(text_pieces(MIXED.encode(), BYTES))
    assert pieces == list(MIXED)  # each character as soon as its last byte is there


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_any_bytes_cut_anywhere_are_as_decoded_at_once(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(data)]
    stream = TextStream()
    pieces = [stream.feed(data[start:end]) for start, end in itertools.pairwise(edges)]
    assert "".join([*pieces, stream.end()]) == data.decode("utf-8", "replace")


def test_a_character_that_never_ends_becomes_a_replacement_at_the_end() -> None:
    data = "ok 🤖".encode()
    assert list(text_pieces(data[:-1], BYTES)) == ["o", "k", " ", "\ufffd"]
    assert "".join(text_pieces([*data[:-1], ord("x")], BYTES)) == "ok \ufffdx"


def test_special_ids_have_no_text() -> None:
    assert list(text_pieces([ord("a"), BYTES.end_of_text, ord("b")], BYTES)) == ["a", "b"]


def until(pieces: list[str], stop: list[str]) -> list[str]:
    """What comes out, piece by piece; the last is what the end brings."""
    stream = TextStream(stop)
    return [stream.feed(piece.encode()) for piece in pieces] + [stream.end()]


@pytest.mark.parametrize("pieces", [["one STOP two"], list("one STOP two"), ["one S", "TO", "P two"]])
def test_a_stop_string_ends_the_text_wherever_it_is_cut(pieces: list[str]) -> None:
    assert "".join(until(pieces, ["STOP"])) == "one "


def test_what_may_become_a_stop_string_waits_and_comes_if_it_does_not() -> None:
    assert until(["a\n", "\nb"], ["\n\nQ:"]) == ["a", "\n\nb", ""]
    assert until(["a\n\nQ"], ["\n\nQ:"]) == ["a", "\n\nQ"]


def reference(text: str, stop: list[str]) -> str:
    """Character by character: the stop string that is complete first ends the text."""
    for end in range(len(text) + 1):
        done = [word for word in stop if text[:end].endswith(word)]
        if done:
            return text[: end - max(map(len, done))]
    return text


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_do_not_depend_on_how_the_text_was_cut(pieces: list[str], stop: list[str]) -> None:
    assert "".join(until(pieces, stop)) == reference("".join(pieces), stop)


def test_nothing_is_read_after_a_stop_string() -> None:
    source = iter(b"abXc")
    assert list(text_pieces(source, BYTES, ["X"])) == ["a", "b"]
    assert list(source) == [ord("c")]
    assert until(["aX", "b"], ["X"]) == ["a", "", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        TextStream(["b", ""])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("one\r\ntwo\tthree\x00", "one\ntwo\tthree\\x00"),
        ("abc\u202edcb", "abc\\u202edcb"),
        (MIXED, MIXED),
    ],
)
def test_no_control_character_reaches_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_output_that_cannot_spell_a_character_gets_a_question_mark() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    write("é 🤖", out)
    assert raw.getvalue() == b"\xe9 ?"
