"""Token shards: what was written is read, the same input gives the same bytes, damage is found and named."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.corpus import shards
from gpt2.corpus.shards import HEADER_BYTES, ShardWriter, TokenShards
from gpt2.errors import DataError, UserError
from gpt2.files import write_json

TOKENIZER = "0123456789abcdef"


def write(folder, documents, vocab_size=300, shard_tokens=2**27, name="train"):
    """Write documents, each a list of chunks of ids."""
    with ShardWriter(folder, name, vocab_size, vocab_size - 1, TOKENIZER, shard_tokens) as writer:
        for chunks in documents:
            writer.add_document(iter([np.array(chunk, dtype=np.uint32) for chunk in chunks]))
        entry = writer.close()
    write_json(folder / "MANIFEST.json", {"parts": {name: entry}})
    return entry


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(shards, "BLOCK_BYTES", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocab_size", [300, 2**16, 2**16 + 1])
@pytest.mark.parametrize("shard_tokens", [1, 5, 8, 24, 1000])
def test_what_was_written_is_read(tmp_path, vocab_size, shard_tokens):
    documents = [[[1, 2, 3], [4]], [[vocab_size - 2]], [[]], [[7] * 30, [], [8]], []]
    entry = write(tmp_path, documents, vocab_size, shard_tokens)
    mark = vocab_size - 1
    expected = [1, 2, 3, 4, mark, vocab_size - 2, mark, *[7] * 30, 8]
    tokens = TokenShards(tmp_path, "train", TOKENIZER)
    assert len(tokens) == entry["tokens"] == len(expected)
    assert tokens.documents == 3
    assert tokens.read(0, len(tokens)).dtype == (np.uint16 if vocab_size <= 2**16 else np.uint32)
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert tokens.read(start, stop).tolist() == expected[start:stop]
    assert tokens.document_ends().tolist() == [4, 6, 38]


@settings(max_examples=30, deadline=None)  # each shard is synced to disk
@given(lengths=st.lists(st.integers(0, 12), max_size=9), shard_tokens=st.integers(1, 30))
def test_the_mark_stands_between_documents_and_ends_point_at_it(tmp_path_factory, lengths, shard_tokens):
    folder = tmp_path_factory.mktemp("part")
    documents = [[np.arange(length) + 10 * number] for number, length in enumerate(lengths)]
    write(folder, documents, vocab_size=1000, shard_tokens=shard_tokens)
    tokens = TokenShards(folder, "train")
    everything = tokens.read(0, len(tokens))
    starts = [0, *(tokens.document_ends()[:-1].astype(int) + 1)]
    read = [everything[start:stop].tolist() for start, stop in zip(starts, tokens.document_ends(), strict=False)]
    assert read == [chunks[0].tolist() for chunks in documents if len(chunks[0])]
    assert (everything == 999).sum() == max(0, len(read) - 1)


def test_the_same_documents_give_the_same_bytes_however_they_are_cut(tmp_path):
    for name, documents in {"a": [[[1, 2, 3]], [[4, 5]]], "b": [[[1], [2, 3]], [[], [4], [5]]]}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, documents, shard_tokens=4)
    first, second = (sorted((tmp_path / name).iterdir()) for name in "ab")
    assert [path.name for path in first] == [
        "MANIFEST.json",
        "train-00000.bin",
        "train-00000.idx",
        "train-00001.bin",
        "train-00001.idx",
    ]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert TokenShards(tmp_path / "a", "train").fingerprint == TokenShards(tmp_path / "b", "train").fingerprint


def test_another_token_gives_another_fingerprint(tmp_path):
    write(tmp_path, [[[1, 2, 3]]])
    before = TokenShards(tmp_path, "train").fingerprint
    write(tmp_path, [[[1, 2, 4]]])
    assert TokenShards(tmp_path, "train").fingerprint != before


def test_the_format_is_the_one_on_paper(tmp_path):
    entry = write(tmp_path, [[[1, 2]], [[3]]])
    data = (tmp_path / "train-00000.bin").read_bytes()
    assert data[:4] == b"GPT2"
    assert np.frombuffer(data[4:16], "<i4").tolist() == [1, 2, 0]
    assert np.frombuffer(data[16:32], "<u8").tolist() == [4, 2]
    assert data[32:40].hex() == TOKENIZER
    assert np.frombuffer(data[1024:], "<u2").tolist() == [1, 2, 299, 3]
    assert np.frombuffer((tmp_path / "train-00000.idx").read_bytes(), "<u8").tolist() == [2, 4]
    assert entry["shards"][0]["sha256"] == [hashlib.sha256(data[1024:]).hexdigest()]


def test_a_part_without_documents_is_empty(tmp_path):
    write(tmp_path, [])
    tokens = TokenShards(tmp_path, "train")
    assert (len(tokens), tokens.document_ends().tolist(), tokens.read(0, 0).tolist()) == (0, [], [])


@pytest.mark.usefixtures("small_blocks")
def test_a_flipped_bit_is_found_when_its_block_is_read(tmp_path):
    write(tmp_path, [[list(range(100))]], shard_tokens=50)  # blocks of 8 tokens
    path = tmp_path / "train-00001.bin"
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 2 * 20] ^= 1  # token 70 of the part, in block 2 of its shard
    path.write_bytes(data)
    tokens = TokenShards(tmp_path, "train")
    assert tokens.read(0, 66).tolist() == list(range(66))
    assert tokens.read(74, 100).tolist() == list(range(74, 100))
    for _ in range(2):
        with pytest.raises(DataError, match=r"train-00001\.bin is damaged: block 2"):
            tokens.read(60, 67)


def test_every_byte_of_a_header_and_of_the_ends_is_checked(tmp_path):
    write(tmp_path, [[[1, 2]], [[3]]])
    path = tmp_path / "train-00000.bin"
    good = path.read_bytes()
    for at in (0, 4, 8, 12, 16, 24, 32, 40, 100, 1023):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(DataError, match=r"train-00000\.bin does not begin"):
            TokenShards(tmp_path, "train")
    path.write_bytes(good)
    (tmp_path / "train-00000.idx").write_bytes(b"\1" * 16)
    with pytest.raises(DataError, match=r"train-00000\.idx is damaged"):
        TokenShards(tmp_path, "train").document_ends()
    (tmp_path / "train-00000.idx").unlink()
    with pytest.raises(DataError, match=r"train-00000\.idx cannot be read"):
        TokenShards(tmp_path, "train").document_ends()


def test_a_shortened_or_missing_file_and_another_tokenizer_are_refused(tmp_path):
    write(tmp_path, [[[1, 2, 3]]])
    with pytest.raises(DataError, match="not ffffffffffffffff"):
        TokenShards(tmp_path, "train", "f" * 16)
    with pytest.raises(DataError, match="does not describe the part validation"):
        TokenShards(tmp_path, "validation")
    path = tmp_path / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-00000\.bin has 1,029 bytes; the manifest says 1,030"):
        TokenShards(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.bin cannot be read"):
        TokenShards(tmp_path, "train")
    with pytest.raises(DataError, match="no prepared data"):
        TokenShards(tmp_path / "nowhere", "train")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"tokens": 4},
        {"documents": 0},
        {"tokenizer": "12"},
        {"tokenizer": "not hexadecimal."},
        {"vocab_size": 70_000},
        {"vocab_size": None},
        {"shards": [{"file": "../train-00000.bin"}]},
        {"shards": 3},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path, change):
    entry = write(tmp_path, [[[1, 2, 3]]])
    write_json(tmp_path / "MANIFEST.json", {"parts": {"train": {**entry, **change}}})
    with pytest.raises(DataError, match=r"MANIFEST\.json"):
        TokenShards(tmp_path, "train")
    shard = {**entry["shards"][0], "file": "../train-00000.bin"}
    write_json(tmp_path / "MANIFEST.json", {"parts": {"train": {**entry, "shards": [shard]}}})
    with pytest.raises(DataError, match="shard 0 contradicts itself"):
        TokenShards(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"parts": []}', '{"parts": {"train": 3}}'])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(DataError, match=r"MANIFEST\.json"):
        TokenShards(tmp_path, "train")


def test_an_id_outside_the_vocabulary_is_never_written(tmp_path):
    with pytest.raises(AssertionError, match="outside the vocabulary"):
        write(tmp_path, [[[300]]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_blocks")
def test_an_interrupted_writer_leaves_nothing_half_written(tmp_path):
    def chunks():
        yield np.arange(40)
        assert [path.name for path in tmp_path.iterdir()] == [".train-00000.bin.tmp"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "train", 300, 299, TOKENIZER) as writer:
        writer.add_document(chunks())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="writing the tokens of train"):
        write(tmp_path / "missing", [[[1]]])


def test_the_manifest_is_json(tmp_path):
    entry = write(tmp_path, [[[1, 2, 3]]])
    assert json.loads(json.dumps(entry)) == entry
