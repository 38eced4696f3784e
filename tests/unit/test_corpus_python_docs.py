"""The embedded corpus: what is in it, that nothing is in it twice, and that it is the same every time."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gpt2.config.schema import DataSettings
from gpt2.corpus import python_docs
from gpt2.corpus.sources import open_sources


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[str, str]]:
    return {name: (question, answer) for name, question, answer in python_docs.question_answer_rows()}


def test_classes_functions_and_methods_are_asked_for(rows: dict[str, tuple[str, str]]):
    question, answer = rows["json.dumps"]
    assert question == "What does json.dumps do?"
    assert answer.startswith("json.dumps(obj, *, skipkeys=False, ")
    assert "\n\nSerialize ``obj`` to a JSON formatted ``str``.\n" in answer
    assert rows["unittest.case.TestCase.addCleanup"][1].startswith("unittest.case.TestCase.addCleanup(function, /, ")
    assert rows["fractions.Fraction"][0] == "What is fractions.Fraction?"
    assert rows["fractions.Fraction.limit_denominator"][0].startswith("What does the method ")
    assert rows["fractions.Fraction.limit_denominator"][1].startswith(
        "fractions.Fraction.limit_denominator(max_denominator=1000000)\n\n"  # without self
    )


@pytest.mark.parametrize("name", ["len", "str.split", "math.sqrt", "os.path.join", "itertools.chain", "time.sleep"])
def test_what_is_written_in_c_is_there(rows: dict[str, tuple[str, str]], name: str):
    assert name in rows


def test_private_names_and_tests_are_not(rows: dict[str, tuple[str, str]]):
    names = [*rows, *(name.split(" ", 1)[1] for name, _ in python_docs.text_documents())]
    assert not [name for name in names if re.search(r"(^|\.)(_|test\.|tests\.|idlelib|site-packages)", name)]


def test_nothing_is_there_twice(rows: dict[str, tuple[str, str]]):
    texts = [" ".join(text.split()) for _, text in python_docs.text_documents()]
    for name, (_, answer) in rows.items():
        signature, _, rest = answer.partition("\n\n")
        texts.append(" ".join((rest if signature.startswith(f"{name}(") else answer).split()))
    assert [text for text, count in Counter(texts).items() if text and count > 1] == []


def test_the_size_is_that_of_a_small_corpus(rows: dict[str, tuple[str, str]]):
    size = sum(len(document.text) for document in python_docs.documents())
    assert 1_000_000 < size < 4_000_000
    assert len(rows) > 2_000


def test_every_text_is_fit_to_train_on():
    for document in python_docs.documents():
        document.text.encode()
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]| object at 0x7f", document.text), document.origin


def test_origins_name_the_version_and_the_thing():
    origins = {document.origin for document in python_docs.documents()}
    version = ".".join(map(str, sys.version_info[:3]))
    assert {f"python {version}: json.dumps", f"python {version}: module json"} <= origins


def test_another_process_finds_the_same():
    code = "from gpt2.corpus.python_docs import digest; print(digest()[1])"
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(Path(python_docs.__file__).parents[2]), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == python_docs.digest()[1]


def test_the_written_table_reads_back_as_the_same_documents(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(python_docs.as_csv())
    settings = DataSettings(template=python_docs.QA_TEMPLATE, header="yes")
    read = [document.text for document in open_sources([str(tmp_path / "a.csv")], settings).documents()]
    assert read == [document.text for document in python_docs.documents()][-len(read) :]
    assert len(read) == len(python_docs.question_answer_rows())


def test_the_written_text_reads_back(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(python_docs.as_text())
    (document,) = open_sources([str(tmp_path / "a.txt")], DataSettings()).documents()
    assert document.text == "\n\n".join(text for _, text in python_docs.text_documents())
