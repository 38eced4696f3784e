"""Encodings and line ends: what the characters of a file are, and what is no text."""

import codecs
import hashlib
from pathlib import Path

import pytest

from gpt2.corpus.document import reading
from gpt2.corpus.texts import TextPieces, examine, known_encoding
from gpt2.errors import ConfigError, DataError

FRENCH = "Le café est très bon, déjà vu. Où est-elle à présent ? À l'été.\n" * 3
BLOCK = 2**20


def written(tmp_path: Path, data: bytes, name: str = "a.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def read(path: Path, encoding: str | None = None) -> str:
    return "".join(TextPieces(path, examine(path, encoding).encoding))


@pytest.mark.parametrize(
    ("data", "encoding", "detected"),
    [
        (FRENCH.encode(), "utf-8", False),
        (codecs.BOM_UTF8 + FRENCH.encode(), "utf-8-sig", False),
        (FRENCH.encode("utf-16"), "utf-16", False),
        (codecs.BOM_UTF16_BE + FRENCH.encode("utf-16-be"), "utf-16", False),
        (FRENCH.encode("utf-32"), "utf-32", False),
        (codecs.BOM_UTF32_BE + FRENCH.encode("utf-32-be"), "utf-32", False),
        (FRENCH.encode("cp1252"), "cp1252", True),
    ],
)
def test_an_encoding_is_found_and_its_mark_is_no_text(tmp_path: Path, data: bytes, encoding: str, detected: bool):
    path = written(tmp_path, data)
    found = examine(path)
    assert (found.encoding, found.detected) == (encoding, detected)
    assert (found.size, found.characters) == (len(data), len(FRENCH))
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert read(path) == FRENCH


def test_russian_is_not_taken_for_western(tmp_path: Path):
    text = "Привет, как дела? Это русский текст о погоде.\n" * 5
    assert read(written(tmp_path, text.encode("cp1251"))) == text


def test_bytes_after_the_first_block_count(tmp_path: Path):
    text = "plain words and more\n" * 60_000 + FRENCH
    assert len(text) > BLOCK
    assert read(written(tmp_path, text.encode("cp1252"))) == text


def test_a_character_across_two_blocks_is_whole(tmp_path: Path):
    text = "a" * (BLOCK - 1) + "é" * 10
    assert read(written(tmp_path, text.encode())) == text


def test_damaged_utf8_is_an_error_and_names_the_byte(tmp_path: Path):
    data = FRENCH.encode() * 10 + b"\xff" + FRENCH.encode() * 10
    with pytest.raises(DataError, match=rf"a\.txt is UTF-8, but damaged: byte {len(FRENCH.encode()) * 10:,}"):
        examine(written(tmp_path, data))


@pytest.mark.parametrize(("encoding", "offset"), [("utf-8", 5), ("ascii", 5), ("shift-jis", 5)])
def test_a_forced_encoding_that_does_not_fit_names_the_byte(tmp_path: Path, encoding: str, offset: int):
    with pytest.raises(DataError, match=f"byte {offset} does not decode") as caught:
        examine(written(tmp_path, b"plain\xff\xfftext"), encoding)
    assert "--data.encoding" in caught.value.fix


def test_offsets_count_the_mark_and_earlier_blocks(tmp_path: Path):
    data = codecs.BOM_UTF8 + b"ab\xffcd"
    with pytest.raises(DataError, match="byte 5 "):
        examine(written(tmp_path, data))
    with pytest.raises(DataError, match=f"byte {BLOCK + 7:,} "):
        examine(written(tmp_path, b"a" * (BLOCK + 7) + b"\xff"), "utf-8")


def test_a_forced_encoding_is_used(tmp_path: Path):
    assert read(written(tmp_path, "é".encode("cp850")), "cp850") == "é"


def test_a_forced_encoding_still_takes_off_its_mark(tmp_path: Path):
    assert read(written(tmp_path, codecs.BOM_UTF8 + b"abc"), "utf-8") == "abc"
    assert read(written(tmp_path, "abc".encode("utf-16")), "UTF-16LE") == "abc"


def test_utf16_without_its_mark_is_an_error_not_a_guess(tmp_path: Path):
    path = written(tmp_path, "some words".encode("utf-16-le"))
    with pytest.raises(DataError, match="null at byte 1, line 1") as caught:
        examine(path)
    assert "utf-16-le" in caught.value.fix
    assert read(path, "utf-16-le") == "some words"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"one\ntwo\nthr\0ee", "null at byte 11, line 3"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "null at byte 8"),
        (b"\x01\x02\x03\x04\x05 words", "5 control characters"),
    ],
)
def test_a_binary_file_is_no_text(tmp_path: Path, data: bytes, said: str):
    with pytest.raises(DataError, match=rf"a\.txt looks binary, not text: .*{said}"):
        examine(written(tmp_path, data))


def test_a_few_control_characters_are_text(tmp_path: Path):
    examine(written(tmp_path, b"page one\x0cpage two \x1b[1mbold\x1b[0m\x07"))


@pytest.mark.parametrize(("name", "near"), [("utf-9", "utf"), ("cp125", "cp125"), ("no such thing", "utf-8")])
def test_an_unknown_encoding_names_near_ones(name: str, near: str):
    with pytest.raises(ConfigError, match=repr(name)) as caught:
        known_encoding(name)
    assert near in caught.value.fix


@pytest.mark.parametrize("name", ["base64", "rot13", "idna", "undefined", "a\0b"])
def test_a_codec_that_is_no_character_encoding_is_refused(name: str):
    with pytest.raises(ConfigError):
        known_encoding(name)


def test_line_ends_become_one_newline(tmp_path: Path):
    assert read(written(tmp_path, b"one\r\ntwo\rthree\n\r\n")) == "one\ntwo\nthree\n\n"
    assert read(written(tmp_path, b"a" * (BLOCK - 1) + b"\r\nb")) == "a" * (BLOCK - 1) + "\nb"


def test_pieces_can_be_read_again(tmp_path: Path):
    pieces = TextPieces(written(tmp_path, b"abc"), "utf-8")
    assert list(pieces) == list(pieces) == ["abc"]


@pytest.mark.parametrize(("data", "blank"), [(b" \n\t\r\n", True), (codecs.BOM_UTF8, True), (b" \n x", False)])
def test_white_space_is_told(tmp_path: Path, data: bytes, blank: bool):
    assert examine(written(tmp_path, data)).blank is blank


def test_what_the_system_refuses_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="is gone"):
        examine(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="permission denied"), reading(tmp_path):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(DataError, match="Input/output error"), reading(tmp_path):
        raise OSError(5, "Input/output error")


def test_a_file_that_no_longer_decodes_changed(tmp_path: Path):
    path = written(tmp_path, b"abc")
    pieces = TextPieces(path, "utf-8")
    path.write_bytes(b"\xff\xff")
    with pytest.raises(DataError, match="changed"):
        list(pieces)
