"""Sources: which files are found, what is said about them, and the documents that they give."""

import os
from pathlib import Path
from typing import Any

import pytest

from gpt2.config.schema import DataSettings
from gpt2.corpus import sources
from gpt2.corpus.sources import Sources, find_in_folder, open_sources
from gpt2.errors import ConfigError, DataError

CSV = "question,answer\nWhy does it rain at all?,Nobody knows.\nWho is there now?,\n,\n"


def folder(tmp_path: Path, **files: str) -> Path:
    """Files by name, with __ for / and the last _ for the dot."""
    for name, text in files.items():
        path = tmp_path / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def opened(*paths: str | Path, **settings: Any) -> Sources:
    return open_sources([str(path) for path in paths], DataSettings(**settings))


def names(found: Sources) -> list[str]:
    return [file.path.name for file in found.files]


def test_text_and_table_become_documents(tmp_path: Path):
    folder(tmp_path, a_txt="one\r\ntwo", b_csv=CSV)
    found = opened(tmp_path)
    told = [(document.origin, document.row, document.text) for document in found.documents()]
    assert told == [
        (str(tmp_path / "a.txt"), None, "one\ntwo"),
        (str(tmp_path / "b.csv"), 1, "Why does it rain at all?\nNobody knows."),
        (str(tmp_path / "b.csv"), 2, "Who is there now?"),
    ]
    assert found.counts == {"documents": 3, "empty rows": 1}
    next(found.documents())
    assert found.counts == {}
    assert [document.text for document in found.documents()] == [text for _, _, text in told]
    assert found.counts == {"documents": 3, "empty rows": 1}


def test_what_is_told_of_a_table(tmp_path: Path):
    found = opened(folder(tmp_path, b_csv=CSV))
    (file,) = found.files
    assert (file.kind, file.size, file.encoding) == ("table", len(CSV), "utf-8")
    assert file.details["picked"] == file.details["columns"] == ("question", "answer")
    assert file.details["separator"] == ","
    assert file.details["header"] is True
    assert "question: read (text: " in found.notes[0]
    assert found.template is None


def test_folders_are_read_in_order_without_hidden_and_empty_files(tmp_path: Path):
    folder(tmp_path, b_txt="b", a__z_md="z", a__y_rst="y", c_txt="", d_png="", e_png="", f_PDF="x")
    folder(tmp_path, **{".hidden__x_txt": "x", ".x_txt": "x"})
    found = opened(tmp_path)
    assert names(found) == ["y.rst", "z.md", "b.txt"]
    assert any("empty" in note and "c.txt" in note for note in found.notes)
    assert any("2 .png, 1 .pdf" in note for note in found.notes)


def test_a_file_reached_twice_is_read_once(tmp_path: Path):
    folder(tmp_path, a_txt="a", b_txt="b")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(opened(tmp_path / "b.txt", tmp_path, f"{tmp_path}/*.txt")) == ["b.txt", "a.txt"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [("*.txt", ["a.txt"]), ("**/*.txt", ["a.txt", "b.txt"]), ("**", ["a.txt", "b.txt"]), ("[n-o]", ["b.txt"])],
)
def test_patterns(tmp_path: Path, pattern: str, found: list[str]):
    folder(tmp_path, a_txt="a", n__b_txt="b", n__c_png="c")
    assert names(opened(f"{tmp_path}/{pattern}")) == found


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path):
    assert names(opened(folder(tmp_path, **{"a[1]_txt": "a", "a1_txt": "b"}) / "a[1].txt")) == ["a[1].txt"]


@pytest.mark.parametrize(
    ("path", "what", "fix"),
    [
        ("shakespear.txt", "There is no", "shakespeare.txt?"),
        ("bok/a.txt", "bok does not exist", "book?"),
        ("empty.txt", "empty.txt is empty", "leave it out"),
        ("p.pdf", "(.pdf)", ".csv and .tsv (tables)"),
        ("plain", "(no extension)", "rename"),
        ("nothing", "The folder", "Put files into it"),
        ("pictures", "only 2 .png, 1 .gif", "convert"),
        ("pictures/*.png", "only 2 .png", "convert"),
        ("*.tsv", "No file matches", "pattern"),
        ("blank", "are empty", "has text"),
        ("a" * 300 + ".txt", "File name too long", "copy"),
    ],
)
def test_a_path_that_cannot_be_used_says_why(tmp_path: Path, path: str, what: str, fix: str):
    folder(tmp_path, shakespeare_txt="x", book__a_txt="x", empty_txt="", p_pdf="x", blank__e_txt="")
    folder(tmp_path, pictures__a_png="x", pictures__b_png="x", pictures__c_gif="x")
    (tmp_path / "plain").write_text("x")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError) as caught:
        opened(tmp_path / path)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_a_pipe_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        opened(tmp_path / "pipe.txt")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = folder(tmp_path, a_txt="a") / "a.txt"
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match="permission denied"):
        opened(path)


def test_blank_files_are_counted_and_nothing_else_is_an_error(tmp_path: Path):
    folder(tmp_path, a_txt=" \n", b_txt="b")
    found = opened(tmp_path)
    assert [document.text for document in found.documents()] == ["b"]
    assert found.counts == {"documents": 1, "blank files": 1}
    with pytest.raises(DataError, match=r"nothing but white space in .*a\.txt"):
        list(opened(tmp_path / "a.txt").documents())


def test_a_file_that_changes_is_an_error(tmp_path: Path):
    found = opened(folder(tmp_path, a_txt="a"))
    (tmp_path / "a.txt").write_text("other")
    with pytest.raises(DataError, match="changed while it was in use"):
        list(found.documents())


def test_a_template_is_in_force_for_tables(tmp_path: Path):
    folder(tmp_path, b_csv=CSV, a_txt="a")
    found = opened(tmp_path / "b.csv", template=r"Q: {question}\nA: {answer}")
    assert found.template == "Q: {question}\nA: {answer}"
    assert [document.text for document in found.documents()][1] == "Q: Who is there now?\nA: "
    found = opened(tmp_path / "a.txt", template="{question}")
    assert found.template is None
    assert found.notes == ("data.template has no effect: none of the files is a table.",)


def test_columns_and_template_exclude_each_other():
    with pytest.raises(ConfigError, match="both given"):
        opened(columns=("a",), template="{a}")


def test_an_encoding_that_is_not_utf8_is_said(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("Le café est très bon, déjà vu.\n".encode("cp1252") * 5)
    (tmp_path / "b.txt").write_bytes("words".encode("utf-16"))
    first, second = opened(tmp_path).notes
    assert "a.txt is not UTF-8; it is read as cp1252" in first
    assert "b.txt is read as utf-16" in second
    assert opened(tmp_path / "a.txt", encoding="cp1252").notes == ()


def test_the_fingerprint_follows_the_documents(tmp_path: Path):
    for home in ("x", "y"):
        folder(tmp_path / home, **({"a_txt": "one", "b_csv": CSV} if home == "x" else {"b_txt": "one", "a_csv": CSV}))
    x, y = tmp_path / "x", tmp_path / "y"
    same = opened(x).fingerprint()
    assert same == opened(y).fingerprint() == opened(x / "b.csv", x / "a.txt", encoding="utf-8").fingerprint()
    others = [
        opened(x / "a.txt"),
        opened(x, columns=("answer",)),
        opened(x, columns=("answer", "question")),
        opened(x, header="no", columns=("column_1", "column_2")),
        opened(x, template="{question}"),
        opened(x, template="{question}!"),
        opened(x, encoding="latin-1"),
    ]
    assert len({same, *(found.fingerprint() for found in others)}) == 1 + len(others)


def test_find_in_folder_leaves_out_what_explains_it(tmp_path: Path):
    folder(tmp_path, README_md="how", a_txt="a", b__README_md="b", c_png="c", d_csv="", **{".x_txt": "x"})
    assert find_in_folder(tmp_path) == [str(tmp_path / "a.txt"), str(tmp_path / "b" / "README.md")]
    assert find_in_folder(tmp_path / "gone") == []


def test_find_in_folder_with_only_its_readme_finds_nothing(tmp_path: Path):
    assert find_in_folder(folder(tmp_path, README_md="how")) == []


def test_find_in_folder_does_not_pass_over_what_the_user_put_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"only 1 \.pdf"):
        find_in_folder(folder(tmp_path, README_md="how", book_pdf="x"))


@pytest.mark.parametrize("path", ["data", "data/*", "data/**"])
def test_the_readme_of_the_data_folder_is_no_data(tmp_path: Path, path: str):
    folder(tmp_path, data__README_md="how", data__a_txt="a")
    assert names(opened(tmp_path / path)) == ["a.txt"]
    assert names(opened(tmp_path / "data" / "README.md")) == ["README.md"]


def test_no_path_means_the_embedded_corpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources.python_docs, "text_documents", lambda: [("module a", "A module.\n")])
    monkeypatch.setattr(sources.python_docs, "question_answer_rows", lambda: [("a.f", "What does a.f do?", "Little.")])
    sources.python_docs.digest.cache_clear()
    found = opened()
    sources.python_docs.digest.cache_clear()
    assert [document.text for document in found.documents()] == ["A module.\n", "Q: What does a.f do?\nA: Little."]
    (file,) = found.files
    assert (file.kind, file.size) == ("embedded", 41)
    assert found.template == "Q: {question}\nA: {answer}"
