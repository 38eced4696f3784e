import errno
import json
import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpt2 import files
from gpt2.errors import RunError, UserError
from gpt2.files import (
    alone,
    atomic_folder,
    atomic_open,
    disk_error,
    locked,
    read_json,
    require_own,
    sweep_temporaries,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), atomic_open(path, "w") as file:
        file.write("half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "final"
    with pytest.raises(ZeroDivisionError), atomic_folder(final) as folder:
        (folder / "a").write_text("1")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for value in ("1", "2"):  # the second replaces the first
        with atomic_folder(final) as folder:
            (folder / "a").write_text(value)
            assert not final.exists() or (final / "a").read_text() == "1"
    assert (final / "a").read_text() == "2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_a_folder_is_replaced_at_once_where_the_system_can_do_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        (folder / folder.name).touch()
    if not files._exchanged(one, other):
        pytest.skip("this system cannot")
    assert (one / "other").exists()
    assert (other / "one").exists()
    monkeypatch.setattr(os, "replace", None)
    with atomic_folder(one) as folder:
        (folder / "new").touch()
    assert [entry.name for entry in one.iterdir()] == ["new"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "other"]


def _die_between_renames(final: Path) -> None:
    replace = os.replace

    def dying(source: Path, target: Path) -> None:
        replace(source, target)
        os._exit(9)

    os.replace = dying
    files._exchanged = lambda one, other: False
    with atomic_folder(final) as folder:
        (folder / "a").write_text("new")


def test_where_it_cannot_an_interruption_leaves_a_folder_that_is_put_back(tmp_path: Path) -> None:
    final = tmp_path / "checkpoints/final"
    with atomic_folder(final) as folder:
        (folder / "a").write_text("old")
    process = multiprocessing.get_context("spawn").Process(target=_die_between_renames, args=(final,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert not final.exists()
    sweep_temporaries(final.parent)
    assert (final / "a").read_text() == "old"
    assert [entry.name for entry in final.parent.iterdir()] == ["final"]


def test_a_folder_that_cannot_be_replaced_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    final, replace = tmp_path / "final", os.replace
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    with atomic_folder(final) as folder:
        (folder / "a").write_text("old")

    def refuse(source: Path, target: Path) -> None:
        if target == final and "tmp-old" not in source.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"), atomic_folder(final) as folder:
        (folder / "a").write_text("new")
    assert (final / "a").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["final"]


def test_what_an_interruption_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".final.tmp-1234").mkdir()
    (tmp_path / ".file.json.1234.tmp").write_text("half")
    (tmp_path / "kept").write_text("")
    sweep_temporaries(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "nonsense"])
def test_no_json_is_a_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "value.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"value\.json is not valid JSON"):
        read_json(path)


def test_json_has_a_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text('"' + "x" * 100 + '"')
    with pytest.raises(UserError, match="at most 50"):
        read_json(path, limit=50)


def _hold(folder: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with locked(folder):
        held.set()
        done.wait(20)


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    assert held.wait(20)
    with pytest.raises(RunError, match=f"in use by process {process.pid}"), locked(tmp_path):
        pass
    process.kill()  # the lock ends with its process, even so
    process.join()
    with locked(tmp_path):
        pass


def test_who_waits_for_another_process_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    def second() -> None:
        with alone(tmp_path / "lock", lambda: said.append("waits")):
            said.append("second")

    with ThreadPoolExecutor(1) as pool:
        with alone(tmp_path / "lock", lambda: said.append("never")):
            waiting = pool.submit(second)
            while not said:
                time.sleep(0.01)
            said.append("first")
        waiting.result(20)
    assert said == ["waits", "first", "second"]


def test_what_may_be_in_use_is_not_swept(tmp_path: Path) -> None:
    for name in (".a.tmp-1", ".b.tmp-1", ".a.json.1.tmp"):
        (tmp_path / name).write_text("")
    os.utime(tmp_path / ".b.tmp-1", (0, 0))
    (tmp_path / "best").mkdir()
    (tmp_path / ".best.tmp").symlink_to("best")
    sweep_temporaries(tmp_path, older_than=3600)
    assert not (tmp_path / ".b.tmp-1").exists()
    assert (tmp_path / ".a.tmp-1").exists()
    sweep_temporaries(tmp_path, of="a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".best.tmp", "best"]
    sweep_temporaries(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize(
    ("internal", "known", "folder"),
    [
        ("runs/x/.run.json.0123abcd.tmp", "runs/x/run.json", "runs/x"),
        ("runs/x/checkpoints/.step-00000002.tmp-0123abcd/config.json", "runs/x/checkpoints/step-00000002", None),
        ("runs/x/checkpoints/.step-00000002.tmp-old-0123abcd", "runs/x/checkpoints/step-00000002", None),
        ("runs/x/.last.tmp", "runs/x/last", "runs/x"),
        ("runs/x/.lock", "runs/x", None),
        ("runs/.prepared/abc/train-00000.bin", "runs/.prepared/abc/train-00000.bin", "runs/.prepared/abc"),
    ],
)
def test_a_refused_write_names_what_the_user_knows(internal: str, known: str, folder: str | None) -> None:
    shown = disk_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), internal), "saving")
    assert shown.what == f"No permission while saving ({known}): Permission denied."
    assert f"ls -ld {folder or Path(known).parent}" in shown.fix


def test_what_cannot_be_written_is_named_in_full(tmp_path: Path) -> None:
    new = disk_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path / "new")))
    assert new.what == f"No permission: cannot write {tmp_path / 'new'}: Permission denied."
    there = disk_error(OSError(errno.EROFS, os.strerror(errno.EROFS), "notes.txt"))
    assert str(Path("notes.txt").absolute()) in there.what
    assert disk_error(OSError(errno.EIO, os.strerror(errno.EIO))).what == "The system refused: Input/output error."
    assert "another place" in disk_error(OSError(errno.ENAMETOOLONG, "File name too long", "x"), "writing x").fix


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists") as refused:
        write_json(tmp_path / "runs/.prepared/x.json", 1)
    assert disk_error(refused.value).what == f"{tmp_path / 'runs'} is a file, where a folder is needed."


def test_a_full_disk_keeps_its_numbers_and_claims_nothing() -> None:
    known = disk_error(OSError(errno.ENOSPC, "12 MB free, about 90 MB needed", "runs/x"), "saving")
    assert "12 MB free, about 90 MB needed" in known.what
    assert "intact" not in known.fix
    assert disk_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), "saving").what == (
        "No space left while saving (x)."
    )


def test_a_disk_that_fills_up_while_a_file_is_written_is_told_with_its_place(tmp_path: Path) -> None:
    for write, path in ((atomic_open, tmp_path / "a file"), (atomic_folder, tmp_path / "a folder")):
        for number, named in ((errno.ENOSPC, True), (errno.ECONNREFUSED, False)):
            with pytest.raises(OSError) as caught, write(path):
                raise OSError(number, os.strerror(number))  # as `write` does, which knows no name
            assert (str(path) in disk_error(caught.value).what) == named


def test_only_files_of_ours_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    require_own(path, b"GGUF", "GGUF file")
    path.write_bytes(b"GGUF and more")
    require_own(path, b"GGUF", "GGUF file")
    for content in (b"", b"GG", b"a note"):
        path.write_bytes(content)
        with pytest.raises(RunError, match="is there already, and is no GGUF file"):
            require_own(path, b"GGUF", "GGUF file")
    with pytest.raises(RunError, match="is a folder"):
        require_own(tmp_path, b"GGUF", "GGUF file")
