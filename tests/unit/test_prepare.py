"""Prepared data is made once, however many commands want it at the same time."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_text

from gpt2.config.schema import DataSettings
from gpt2.corpus import prepare as module
from gpt2.corpus.prepare import Prepared, prepare
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


def test_what_a_killed_preparation_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(make_text(300))
    sources = open_sources((str(tmp_path / "notes.txt"),), DataSettings())
    name = module.fingerprint(sources, None, "char", DataSettings())
    left = [tmp_path / f"p/.{name}.tmp-1", tmp_path / "p/.0123456789abcdef.tmp-1"]
    for folder in left:
        folder.mkdir(parents=True)
    prepare(sources, None, "char", DataSettings(), tmp_path / "p")
    assert [folder.exists() for folder in left] == [False, True], "another's may be in use"
