"""Tables: separators, headers, columns, templates; and what is malformed is an error with its line."""

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.corpus.tables.columns import judge_columns, kind
from gpt2.corpus.tables.records import FIELD_LIMIT, LINE_LIMIT
from gpt2.corpus.tables.table import Table, open_table
from gpt2.corpus.tables.template import parse_template
from gpt2.errors import ConfigError, DataError

PROSE = ["The river runs slowly to the sea.", "Nobody knew where the old road went.", "Bread is best while it is warm."]


def table(tmp_path: Path, text: str, name: str = "a.csv", **settings: Any) -> Table:
    path = tmp_path / name
    path.write_bytes(text.encode())
    if "template" in settings:
        settings["template"] = parse_template(settings["template"])
    return open_table(path, "utf-8", **settings)


def test_rows_that_do_not_agree_on_a_separator_are_read_whole_and_it_is_said(tmp_path: Path):
    ragged = "q,a\n" + "".join(",".join([PROSE[i % 3]] * (i % 4 + 1)) + "\n" for i in range(40))
    found = table(tmp_path, ragged)
    assert found.columns == ("q,a",)
    assert "first line has a comma" in found.about
    assert "first line" not in table(tmp_path, "text\n" + "\n".join(PROSE) + "\n", "b.csv").about


def texts(found: Table) -> list[str]:
    return [text for _, text in found.rows(Counter())]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(tmp_path: Path, separator: str):
    rows = [["id", "text"], *([str(i), f"{line} Yes, and no; or | more"] for i, line in enumerate(PROSE))]
    written = io.StringIO()
    csv.writer(written, delimiter=separator).writerows(rows)
    found = table(tmp_path, written.getvalue())
    assert found.separator == separator
    assert texts(found) == [row[1] for row in rows[1:]]


def test_decimal_commas_are_no_separator(tmp_path: Path):
    found = table(tmp_path, "price;text\n" + "".join(f"1,5;{line}\n" for line in PROSE))
    assert (found.separator, found.picked) == (";", ("text",))


def test_one_column_with_commas_stays_whole(tmp_path: Path):
    lines = ["Yes, it rained all day.", "It did not, I was there, believe me.", "Then we agree on nothing"]
    assert texts(table(tmp_path, "text\n" + "\n".join(lines))) == lines


def test_a_comma_in_the_first_of_many_plain_lines_is_no_separator(tmp_path: Path):
    lines = ["Well, it rained all day.", "Then it stopped.", "Nobody went out.", "Everyone slept."]
    assert texts(table(tmp_path, "\n".join(lines), header="no")) == lines


def test_tsv_prefers_the_tab(tmp_path: Path):
    text = "a,b\tc,d\n" + "one, two\tthree, four\n" * 3
    assert table(tmp_path, text, "a.tsv").separator == "\t"


def test_quoted_separators_newlines_and_quotes(tmp_path: Path):
    found = table(tmp_path, 'text,n\r\n"He said ""no"", twice.\r\nThen he left, slowly.",1\r\n', columns=["text"])
    assert texts(found) == ['He said "no", twice.\nThen he left, slowly.']


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("text,label\nA fine film about the sea.,pos\nA dull film about nothing.,neg\n", True),
        ("When did you come?,What should we change here next year?\n2024-01-02,More bread please.\n", True),
        ("1,The river runs to the sea.\n2,Bread is best warm.\n", False),
        ("The river runs to the sea.,yes\nBread is best while it is warm.,no\n", False),
        ("fine,pos\ndull,pos\nsad,neg\n", False),
        ("hello there how are you today my friend and neighbour,x\n", False),
    ],
)
def test_the_header_is_found(tmp_path: Path, text: str, header: bool):
    assert table(tmp_path, text).header is header


def test_the_header_setting_decides(tmp_path: Path):
    text = "some words here,more words there\nand again some words,and more again\n"
    assert table(tmp_path, text, header="yes").columns == ("some words here", "more words there")
    found = table(tmp_path, text, header="no", columns=["column_2"])
    assert found.columns == ("column_1", "column_2")
    assert texts(found) == ["more words there", "and more again"]


def test_a_column_without_name_gets_one(tmp_path: Path):
    assert table(tmp_path, ",text\n0,Some words that were said here.\n").columns == ("column_1", "text")


MALFORMED = [
    ('text,n\nfine,1\n\n"never closed,2\nmore,3\n', "line 4: a quote that opens in this row is never closed"),
    ('text,n\nfine,1\n"one\ntwo",2\n"never closed,3\n"x",4\n', "line 5: text follows the closing quote"),
    ('text,n\n"a"b,1\n', "line 2: text follows the closing quote of a field, on line 2"),
    ("text,n\nfine,1\nfine,2,3\n", "line 3: the row has 3 fields, but there are 2 columns"),
    ("text,n\n" + "a" * (FIELD_LIMIT + 1) + ",1\n", f"line 2: a field has more than {FIELD_LIMIT:,} characters"),
    ('text,n\n"open,1\n' + "words,2\n" * 130_000, f"line 2: a field has more than {FIELD_LIMIT:,} characters"),
    ("text,n\nx,1\n" + "ab," * (LINE_LIMIT // 3 + 1), f"line 3: longer than {LINE_LIMIT:,} characters"),
    ("text,text\nfine,1\n", "line 1: two columns are called 'text'"),
]


@pytest.mark.parametrize(("text", "said"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_names_its_line(tmp_path: Path, text: str, said: str):
    with pytest.raises(DataError) as caught:
        texts(table(tmp_path, text, columns=["text"]))
    assert str(tmp_path / "a.csv") + ", " + said in caught.value.what
    assert caught.value.fix


def test_a_field_at_the_limit_is_read(tmp_path: Path):
    assert texts(table(tmp_path, "text,n\n" + "a" * FIELD_LIMIT + ",1\n", columns=["text"])) == ["a" * FIELD_LIMIT]


def test_a_malformed_row_after_the_sample_is_found_too(tmp_path: Path):
    found = table(tmp_path, "text,n\n" + "Some words that were said here.,1\n" * 3_000 + '"open,2\n')
    with pytest.raises(DataError, match="line 3,002: a quote"):
        texts(found)


@pytest.mark.parametrize(("text", "said"), [("a,b\n", "header (a, b) but no rows"), ("\n \n", "has no rows")])
def test_a_table_without_rows_is_an_error(tmp_path: Path, text: str, said: str):
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    assert said in caught.value.what


def test_short_and_empty_rows_are_counted_and_blank_lines_are_no_rows(tmp_path: Path):
    found = table(tmp_path, "n,a,b\n1,x,y\n\n2\n3,z\n4,,\n ,q,w,,\n", columns=["b", "a"])
    counts: Counter[str] = Counter()
    assert list(found.rows(counts)) == [(1, "y\nx"), (3, "z"), (5, "w\nq")]
    assert counts == {"short rows": 2, "empty rows": 2}


def test_a_missing_column_names_the_others_and_the_nearest(tmp_path: Path):
    with pytest.raises(DataError, match="no column 'qestion'") as caught:
        table(tmp_path, "question,answer\nwhy,so\n", columns=["qestion"])
    assert caught.value.fix == "Did you mean 'question'? Its columns are question, answer."


COLUMNS = {  # name: (value of row i, how the reason begins, whether it is picked)
    "n": (lambda i: str(i), "numbers", False),
    "day": (lambda i: f"2024-01-{i % 28 + 1:02}", "dates", False),
    "link": (lambda i: f"https://a.org/{i}", "web addresses", False),
    "user": (lambda i: f"user_{i}", "identifiers", False),
    "mail": (lambda i: f"x{i}@a.org", "e-mail addresses", False),
    "label": (lambda i: ["good", "bad"][i % 2], "categories: only 2 different values in 60 rows", False),
    "system": (lambda i: "You are a helpful assistant.", "categories: a single value in 60 rows", False),
    "town": (lambda i: "Town" + chr(97 + i), "short values: 1.0 words", False),
    "art": (lambda i: "<-- [] ** // -- >>" * (i + 1), "only 0% of its characters are letters", False),
    "none": (lambda i: "", "empty in the first 60 rows", False),
    "body": (lambda i: f"{PROSE[i % 3]} {i}", "text: 8 words", True),
    "extra": (lambda i: "" if i % 3 else f"{PROSE[0]} {i}", "text: 8 words", True),
}


def test_the_text_columns_are_picked_each_with_a_reason():
    rows = [[value(i) for value, _, _ in COLUMNS.values()] for i in range(60)]
    for each in judge_columns(list(COLUMNS), rows):
        _, reason, picked = COLUMNS[each.column]
        assert each.picked is picked, each
        assert each.reason.startswith(reason), each


def test_a_short_answer_is_picked_by_its_name(tmp_path: Path):
    text = "question,answer,town\n" + "".join(f"What is the name of city {i}?,Rome {i},Pisa {i}\n" for i in range(30))
    assert table(tmp_path, text).picked == ("question", "answer")


def test_japanese_prose_is_text(tmp_path: Path):
    judged = judge_columns(["a", "b"], [["これは日本語の文章です。", "12"]])
    assert [each.picked for each in judged] == [True, False]
    assert judged[0].reason.startswith("text: 6 words")


def test_without_prose_the_longest_text_is_picked_and_it_is_said(tmp_path: Path):
    found = table(tmp_path, "n,a,b\n1,Rome,red\n2,Vienna,blue\n")
    assert found.picked == ("a",)
    assert "no column reads like prose" in found.details["reasons"]["a"]
    assert "a: read (no column reads like prose" in found.about


def test_a_table_of_numbers_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="holds no text: a: numbers, b: numbers"):
        table(tmp_path, "a,b\n1,2.5\n-3,4e5\n")


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("45", "numbers"),
        ("-1,234.5 %", "numbers"),
        ("$12", "numbers"),
        ("2024-01-02T10:00:00Z", "dates"),
        ("3 March 2021", "dates"),
        ("March 3, 2021", "dates"),
        ("10:30", "dates"),
        ("www.a.org/x", "web addresses"),
        ("a.jpg", "file names"),
        ("AB-123", "identifiers"),
        ("two words", None),
        ("word", None),
        ("In 2024 it rained.", None),
        ("", None),
    ],
)
def test_kinds(value: str, found: str | None):
    assert kind(value) == found


def test_a_template_makes_the_text(tmp_path: Path):
    text = "my question,a.b,to: name\nwhy,so,Ann\n,,\nhow,,\n"
    found = table(tmp_path, text, template=r"Q: {my question}\n{{x}}\t{a.b} {to: name}")
    counts: Counter[str] = Counter()
    assert list(found.rows(counts)) == [(1, "Q: why\n{x}\tso Ann"), (3, "Q: how\n{x}\t ")]
    assert counts == {"empty rows": 1}
    assert found.picked == ("my question", "a.b", "to: name")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("no field", "has no field"),
        ("{{a}}", "has no field"),
        ("{}", "without a name"),
        ("{a} }", "cannot be read"),
        ("{a", "cannot be read"),
        ("{a:>10}", "has a format"),
        ("{a!r}", "has a format"),
        ("{a.real}", "has no column 'a.real'"),
        ("{a[0]}", "has no column 'a[0]'"),
        ("{aa}", "has no column 'aa'"),
    ],
)
def test_a_wrong_template_is_a_config_error(tmp_path: Path, template: str, said: str):
    with pytest.raises(ConfigError) as caught:
        table(tmp_path, "a,b\nx,y\n", template=template)
    assert said in caught.value.what
    assert caught.value.fix


CELL = st.text(st.sampled_from('ab ,;"\n|\t'), min_size=1, max_size=8)


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]):
    written = io.StringIO(newline="")
    csv.writer(written, quoting=csv.QUOTE_ALL).writerows([("one", "two"), *rows])
    found = table(tmp_path_factory.getbasetemp(), written.getvalue(), header="yes", template="{one}/{two}")
    assert texts(found) == [f"{one}/{two}" for one, two in rows if one.strip() or two.strip()]
