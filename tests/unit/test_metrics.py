import errno
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpt2.training.metrics import MetricsFile, Record, elapsed, read_metrics

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


def record(step: int, val_loss: float | None = None) -> Record:
    return Record(step, step / 10, step * 100, step * 0.5, 1 / step, 1e-3, 0.5, 200.0, val_loss)


def written(path: Path, steps: int) -> MetricsFile:
    """A file of so many steps, closed."""
    metrics = MetricsFile(path)
    for step in range(1, steps + 1):
        metrics.log(record(step))
    metrics.close()
    return metrics


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [record(1), record(2, 3.25), record(3)]
    metrics = MetricsFile(path)
    for one in records:
        metrics.log(one)
    assert read_metrics(path) == records  # before it is closed: a reader may look at any time
    metrics.close()
    assert '"val_loss": 3.25' in path.read_text().splitlines()[1]
    assert "val_loss" not in path.read_text().splitlines()[0]


def test_resume_cuts_the_file_back_to_its_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 7)
    with path.open("a") as file:
        file.write('{"step": 8, "tok')  # killed while writing
    again = MetricsFile(path, keep_to_step=5)
    again.log(record(6))
    again.close()
    assert [one.step for one in read_metrics(path)] == [1, 2, 3, 4, 5, 6]


class Full(io.FileIO):
    """A file on a disk that takes so many more bytes."""

    room = 0

    def write(self, data: "Buffer") -> int:
        part = bytes(data)[: self.room]
        if not part:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(part)
        return super().write(part)


def on_a_full_disk(path: Path, steps: int) -> tuple[MetricsFile, Full]:
    """A file of so many steps, open, and the disk that has no room for more."""
    metrics = written(path, steps)
    metrics._file = full = Full(path, "r+")
    full.seek(path.stat().st_size)
    return metrics, full


def test_a_full_disk_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics, full = on_a_full_disk(path, 1)
    full.room = 20  # a part of a line
    for step in (2, 3):
        metrics.log(record(step))
    assert [one.step for one in read_metrics(path)] == [1]
    with pytest.raises(OSError, match="No space"):  # a checkpoint of step 3 would lack lines
        metrics.sync()
    assert capsys.readouterr().err.count("Training goes on") == 1
    full.room = 10**6
    metrics.sync()
    metrics.log(record(4))
    assert [one.step for one in read_metrics(path)] == [1, 2, 3, 4]


def test_what_could_not_be_synced_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have dropped what it took before, and says so once."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.log(record(1))
    metrics.sync()
    kept = path.stat().st_size
    metrics.log(record(2))

    def dropped(descriptor: int) -> None:
        os.ftruncate(descriptor, kept)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "fsync", dropped)
        metrics.sync()
    metrics.log(record(3))
    metrics.sync()
    assert [one.step for one in read_metrics(path)] == [1, 2, 3]


def test_going_back_forgets_lines_that_were_not_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics, _ = on_a_full_disk(path, 4)
    metrics.log(record(5))
    metrics.cut_back(2)
    metrics.log(record(3))
    assert [one.step for one in read_metrics(path)] == [1, 2, 3]


def test_a_damaged_line_is_named_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, 7)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\x00" * len(lines[1]) + b"\n"
    lines[3] = lines[3].replace(b'"lr":', b'"lr"9')
    lines[4] = lines[4].replace(b'"lr"', b'"mr"')
    path.write_bytes(b"".join(lines))
    assert [one.step for one in read_metrics(path)] == [1, 3, 6, 7]
    said = capsys.readouterr().err
    for where in ("line 2", "line 4", "step 5"):
        assert where in said
    MetricsFile(path, keep_to_step=6).close()
    assert [one.step for one in read_metrics(path)] == [1, 3, 6]


def test_the_time_of_several_commands_adds_up() -> None:
    assert elapsed([]) == []
    records = [record(step) for step in (2, 4, 6, 1, 3, 2)]  # seconds: 1, 2, 3 · 0.5, 1.5 · 1
    assert elapsed(records) == [1, 2, 3, 3.5, 4.5, 5.5]
