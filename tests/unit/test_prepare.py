"""Prepared data is made once, however many commands want it at the same time."""

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_text

from gpt2.config.schema import DataSettings
from gpt2.corpus import prepare as module
from gpt2.corpus.origins import Origins
from gpt2.corpus.prepare import Prepared, prepare
from gpt2.corpus.shards import TokenShards
from gpt2.corpus.sources import open_sources


def test_two_commands_at_once_prepare_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text(make_text(300))
    root, made = tmp_path / "prepared", []
    encode = module._encode

    def slow(*arguments: Any) -> Any:
        made.append(arguments)
        time.sleep(0.3)
        return encode(*arguments)

    monkeypatch.setattr(module, "_encode", slow)
    results: list[Prepared] = []

    def command() -> None:
        sources = open_sources((str(tmp_path / "notes.txt"),), DataSettings())
        results.append(prepare(sources, None, "char", DataSettings(), root))

    threads = [threading.Thread(target=command) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert sorted(result.reused for result in results) == [False, True]
    assert results[0].folder == results[1].folder


def test_each_document_of_the_tokens_has_the_name_of_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("Of snow and of the river.")
    rows = [f"number {number} is written out here" for number in range(1, 41)]
    (tmp_path / "talk.csv").write_text("\n".join(["text", *rows]))
    sources = open_sources((str(tmp_path / "poem.txt"), str(tmp_path / "talk.csv")), DataSettings())
    prepared = prepare(sources, None, "char", DataSettings(split="documents"), tmp_path / "p")
    seen = 0
    for side in ("train", "validation"):
        shards, names = TokenShards(prepared.folder, side), Origins(prepared.folder, side)
        ends = shards.document_ends().astype(int).tolist()
        assert len(names) == len(ends)
        for name, start, end in zip(names, [0, *(end + 1 for end in ends)], ends, strict=False):
            text = prepared.tokenizer.decode(shards.read(start, end).tolist())
            row = re.match(r"number (\d+) ", text)
            assert name == (f"talk.csv, row {row[1]}" if row else "poem.txt")
            seen += 1
    assert seen == 41
    (prepared.folder / "train-origins.bin").unlink()
    assert list(Origins(prepared.folder, "train")) == []  # as of what was prepared before there were names


def test_what_a_killed_preparation_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(make_text(300))
    sources = open_sources((str(tmp_path / "notes.txt"),), DataSettings())
    name = module.fingerprint(sources, None, "char", DataSettings())
    left = [tmp_path / f"p/.{name}.tmp-1", tmp_path / "p/.0123456789abcdef.tmp-1"]
    for folder in left:
        folder.mkdir(parents=True)
    prepare(sources, None, "char", DataSettings(), tmp_path / "p")
    assert [folder.exists() for folder in left] == [False, True], "another's may be in use"
