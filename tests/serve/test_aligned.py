"""Tokens that are reported beside an answer are those that its text is made of."""

from gpt2.generation.request import Delta, Finish, Token
from gpt2.serve.aligned import Aligned


def reported(*deltas: tuple[str, bytes, Finish | None]) -> list[list[tuple[bytes, int]]]:
    """Of each delta (its text, its token, how it ended): the tokens that are due, and where they begin."""
    aligned = Aligned()
    return [
        [(placed.token.bytes, placed.offset) for placed in aligned.due(Delta(text, (Token(0, spelled),), finish))]
        for text, spelled, finish in deltas
    ]


def test_each_token_comes_with_its_text() -> None:
    assert reported(("ab", b"ab", None), ("c", b"c", "length")) == [[(b"ab", 0)], [(b"c", 2)]]


def test_what_is_held_back_comes_later_or_never() -> None:
    held = ("a", b"a", None), ("", b"#", None)
    assert reported(*held, ("#b", b"b", None)) == [[(b"a", 0)], [], [(b"#", 1), (b"b", 2)]]
    assert reported(*held, ("", b"#", "stop")) == [[(b"a", 0)], [], []]


def test_a_token_that_the_stop_string_cuts_belongs_to_the_text() -> None:
    assert reported(("a", b"a#", None), ("", b"#", "stop")) == [[(b"a#", 0)], []]


def test_a_character_of_several_tokens_is_one_character() -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert reported(("", first, None), ("é", second, None), ("x", b"x", "length")) == [
        [],
        [(first, 0), (second, 0)],
        [(b"x", 1)],
    ]


def test_half_a_character_at_the_end_is_there_and_so_is_what_spells_nothing() -> None:
    assert reported(("a", b"a", None), ("\ufffd", "é".encode()[:1], "length")) == [[(b"a", 0)], [("é".encode()[:1], 1)]]
    assert reported(("a", b"a", None), ("", b"", "length")) == [[(b"a", 0)], [(b"", 1)]]
