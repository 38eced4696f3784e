import numpy as np
import pytest

from gpt2.corpus.document import Document
from gpt2.corpus.split import describe, plan_split, scan
from gpt2.errors import DataError


def documents(texts: list[str]) -> list[Document]:
    return [Document("test", None, (text[: len(text) // 2], text[len(text) // 2 :])) for text in texts]


def sides(texts: list[str], kind: str = "auto", share: float = 0.1) -> tuple[str, dict[str, list[str]]]:
    found = scan(documents(texts))
    split = plan_split(found, kind, share)  # type: ignore[arg-type]
    result: dict[str, list[str]] = {"train": [], "validation": []}
    for number, document in enumerate(documents(texts)):
        for side, pieces in split.parts(document, int(found.hashes[number]), int(found.characters[number])):
            result[side].append("".join(pieces))
    return describe(found, split), result


def test_many_documents_are_split_whole_and_equal_ones_together() -> None:
    texts = [f"document {number % 300}" for number in range(600)]
    kind, result = sides(texts)
    assert kind.startswith("whole documents") and "longest" not in kind
    assert not set(result["train"]) & set(result["validation"])
    assert sorted(result["train"] + result["validation"]) == sorted(texts)
    assert len(set(result["validation"])) == 30


def test_the_side_of_a_document_does_not_depend_on_its_place() -> None:
    texts = [f"document {number}" for number in range(200)]
    assert set(sides(texts)[1]["validation"]) == set(sides(texts[::-1])[1]["validation"])


def test_few_documents_are_split_by_position() -> None:
    texts = ["a" * 9000 + "b" * 1000, "c" * 4500 + "d" * 500]
    kind, result = sides(texts)
    assert kind == "the last part of each document"
    assert result == {"train": ["a" * 9000, "c" * 4500], "validation": ["b" * 1000, "d" * 500]}
    kind, result = sides([*texts, "a note"])
    assert kind == "the last part of the 2 longest documents; the others train"
    assert result == {"train": ["a" * 9000, "c" * 4500, "a note"], "validation": ["b" * 1000, "d" * 500]}


@pytest.mark.parametrize(("rows", "share"), [(12, 0.1), (100, 0.005), (1000, 0.0005)])
def test_no_short_row_is_cut(rows: int, share: float) -> None:
    texts = [f"row {number:04d} " + "word " * 10 for number in range(rows)]
    kind, result = sides(texts, share=share)
    assert kind.startswith("whole documents") and "longest" not in kind
    assert sorted(result["train"] + result["validation"]) == sorted(texts)
    assert result["validation"]


def test_a_single_document_is_cut_however_short() -> None:
    assert sides(["0123456789"])[1] == {"train": ["012345678"], "validation": ["9"]}
    assert len(sides(["0123456789"] * 3)[1]["validation"]) == 3


def test_whoever_asks_for_positions_gets_them() -> None:
    assert sides(["0123456789", "abcdefghij"], kind="position")[1]["validation"] == ["9", "j"]


def test_one_novel_among_notes_is_cut_and_the_notes_stay_whole() -> None:
    novel, notes = "novel " * 5000, [f"note {number}" for number in range(100)]
    kind, result = sides([novel, *notes])
    assert kind.endswith("of the 1 longest the last part (these count on both sides)")
    assert result["train"][0] + result["validation"][0] == novel
    assert len(result["validation"][0]) == 3000
    assert sorted(result["train"][1:] + result["validation"][1:]) == sorted(notes)
    assert len(result["validation"][1:]) == 10


def test_an_odd_cut_is_inside_a_piece() -> None:
    assert sides(["0123456789" * 10], share=0.25)[1] == {
        "train": [("0123456789" * 10)[:75]],
        "validation": [("0123456789" * 10)[75:]],
    }


def test_one_document_cannot_be_split_whole() -> None:
    with pytest.raises(DataError, match="only 1 document"):
        sides(["text", "text"], kind="documents")


def test_even_two_documents_give_one_to_each_side() -> None:
    _, result = sides(["one", "two"], kind="documents", share=0.9)
    assert {len(texts) for texts in result.values()} == {1}


def test_the_scan_counts() -> None:
    found = scan(documents(["äb", "c", "äb"]))
    assert found.duplicates == 1
    assert found.text_bytes == 7
    assert found.characters.tolist() == [2, 1, 2]
    assert found.hashes[0] == found.hashes[2] != found.hashes[1]
    assert found.hashes.dtype == np.uint64
