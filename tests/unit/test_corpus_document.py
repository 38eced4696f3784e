"""Pieces: they join to the text, stay small, and their borders change no GPT-2 pre-token."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.corpus.document import Document, in_pieces

# GPT-2's pattern with ASCII classes, as the standard library has no \p{L}.
PRE_TOKEN = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
TEXT = st.text("ab1.' \n\t", max_size=200)


@given(TEXT, st.integers(1, 12))
def test_pieces_change_no_pre_token(text: str, target: int):
    pieces = list(in_pieces([text], target=target, cap=10**6))
    assert "".join(pieces) == text
    assert all(pieces)
    assert [token for piece in pieces for token in PRE_TOKEN.findall(piece)] == PRE_TOKEN.findall(text)


@given(TEXT, st.integers(1, 12), st.integers(1, 50), st.integers(1, 20))
def test_pieces_do_not_depend_on_the_blocks(text: str, block: int, target: int, more: int):
    blocks = [text[i : i + block] for i in range(0, len(text), block)]
    assert list(in_pieces(blocks, target, target + more)) == list(in_pieces([text], target, target + more))


def test_pieces_are_as_long_as_a_safe_place_allows():
    assert list(in_pieces(["aaa bbb ccc ddd"], target=7, cap=100)) == ["aaa bbb", " ccc ddd"]


def test_a_piece_without_safe_place_grows_to_the_cap():
    assert list(map(len, in_pieces(["a" * 25], target=4, cap=10))) == [10, 10, 5]


def test_a_long_piece_ends_at_the_first_safe_place_after_the_target():
    assert list(in_pieces(["aaaaaaaaaa bb cc"], target=4, cap=100)) == ["aaaaaaaaaa", " bb", " cc"]


@pytest.mark.parametrize("text", ["a" * 70_000 + "\n" + "b" * 70_000, "a b " * 50_000])
def test_the_search_from_the_end_finds_the_last_place(text: str):
    target = 139_000
    last = max(match.start() for match in re.finditer(r"(?<=\S)[ \n](?=\S)", text) if match.start() <= target)
    assert len(next(iter(in_pieces([text], target)))) == last


def test_text_joins_the_pieces():
    assert Document("a.txt", None, ("one", " two")).text == "one two"
