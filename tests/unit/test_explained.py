"""What `gpt2 explain` prints keeps to the terminal's width, and shows what it is about."""

import pytest
from rich.console import Console

from gpt2.console import table
from gpt2.recipes.explained import excerpt, print_growth, shown


@pytest.mark.parametrize("width", [5, 9, 10, 11, 40, 41, 80])
@pytest.mark.parametrize("before", ["", "abc", "a" * 300])
@pytest.mark.parametrize("text", ["x", "y" * 38, "y" * 40, "b" + "z" * 200 + "e"])
def test_an_excerpt_fits_and_shows_both_ends_of_what_it_is_about(before: str, text: str, width: int) -> None:
    for after in ("", "def", "d" * 300):
        left, middle, right = excerpt(before, text, after, width)
        whole = left + middle + right
        assert len(whole) <= width
        assert (middle[0], middle[-1]) == (text[0], text[-1])
        assert left in (before, "…") or before.endswith(left.removeprefix("…"))
        assert right in (after, "…") or after.startswith(right.removesuffix("…"))
        if len(before + text + after) <= width:
            assert whole == before + text + after
        elif len(text) <= width - 2:
            assert len(whole) == width  # all the room is used


def test_white_space_is_seen_and_lines_are_one() -> None:
    assert [shown(" "), shown(" a"), shown("a\n\tb"), shown("\n"), shown("\n  ")] == ["·", " a", "a⏎⇥b", "⏎", "⏎··"]


def test_running_text_in_a_table_is_cut_and_takes_nothing_from_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    where = Console(width=40)
    table(
        "T",
        [("document 1,234", "12.3", "word " * 90), ("b", "4", "short")],
        ("document", "score", "begins"),
        ("begins",),
        where,
    )
    assert capsys.readouterr().out.splitlines()[1:] == [
        "document        score  begins           ",
        "document 1,234   12.3  word word word w…",
        "b                   4  short            ",
    ]


def test_a_poem_stays_a_poem(capsys: pytest.CaptureFixture[str]) -> None:
    print_growth(
        {
            "prompt": "Ode",
            "asked": False,
            "checkpoints": [{"step": 1200, "loss": 2.5, "text": "\nto night\n  and day\n"}],
        }
    )
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "After 'Ode'",
        "",
        "step 1,200, validation loss 2.5000",
        "  to night",
        "    and day",
    ]
