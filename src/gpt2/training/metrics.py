"""What is known after each optimizer step, and the file that keeps it: one JSON object a line."""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from gpt2.console import warn
from gpt2.files import atomic_open, named


@dataclass(slots=True)
class Record:
    """One optimizer step.

    Attributes:
        step: optimizer steps done, this one included.
        epoch: passes over the training part done, a fraction.
        tokens: training tokens seen.
        seconds: since the start of the command, set-up included.
        train_loss: mean cross-entropy of this step's batch before the update, nats a token.
        lr: learning rate of this step.
        grad_norm: norm of the whole gradient before clipping.
        tokens_per_second: training tokens over the time of this step, validation and saving excluded.
        val_loss: mean cross-entropy of the validation part after this step, where it was measured.
        skipped: batches that were passed over before this step's, because their numbers were bad; None: none.
    """

    step: int
    epoch: float
    tokens: int
    seconds: float
    train_loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    val_loss: float | None = None
    skipped: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file; a last line that was cut off while being written is left out.

    So are damaged lines, with a warning.
    """
    if not path.exists():
        return []
    records = []
    for _, value in _lines(path):
        try:
            records.append(Record(**value))
        except TypeError:  # a bit in a name
            warn(f"{path}, step {value['step']}, is damaged: it is left out.")
    return records


def elapsed(records: Sequence[Record]) -> list[float]:
    """Seconds of all commands that made a run, up to each record: `seconds` begins anew where it was resumed."""
    times, before, last = [], 0.0, 0.0
    for record in records:
        if record.seconds < last:
            before += last
        last = record.seconds
        times.append(before + last)
    return times


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line and what it says. Damaged ones (a cut of power, a rotten disk) are named and passed over."""
    # What follows the last newline is incomplete.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            value = json.loads(line)
            int(value["step"])
        except (ValueError, KeyError, TypeError):
            warn(f"{path}, line {number}, is damaged: it is left out.")
        else:
            yield line, value


def cut_back(path: Path, step: int) -> None:
    """Leave out of a file of JSON lines what belongs to later steps, and a last line that was cut off.

    That takes no room on the disk, unless lines in the middle are damaged: they are left out, too.
    """
    kept = [f"{line}\n".encode() for line, value in _lines(path) if value["step"] <= step] if path.exists() else []
    whole = b"".join(kept)
    if path.exists() and path.read_bytes().startswith(whole):
        os.truncate(path, len(whole))
        return
    with atomic_open(path) as file:
        file.write(whole)


class LinesFile:
    """JSON lines of a run, each with its step: appended to, and cut back to a checkpoint's step on resume.

    What has not been synced is remembered as well: a full disk loses no line. It is written when there is room.
    """

    def __init__(self, path: Path, keep_to_step: int = 0) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._lock = threading.Lock()  # the thread that saves syncs, the one that trains appends
        self._unsynced = bytearray()
        """What follows the first `_synced` bytes of the file; the end of it may not have been written yet."""
        self._synced = 0
        self._refused = False
        self.cut_back(keep_to_step)

    def cut_back(self, step: int) -> None:
        """Forget what belongs to later steps; they will be made again."""
        self.close()
        cut_back(self._path, step)
        self._file = self._path.open("r+b", buffering=0)
        self._synced = self._file.seek(0, os.SEEK_END)
        self._unsynced.clear()

    def append(self, value: Mapping[str, Any]) -> None:
        """Append a line; it has left this process when this returns, unless the disk is full: that is said."""
        with self._lock:
            self._unsynced += f"{json.dumps(value, ensure_ascii=False)}\n".encode()
            try:
                self._write()
            except OSError as error:
                if not self._refused:
                    warn(
                        f"{self._path} cannot be written: {error.strerror or error}. Training goes on; its lines are "
                        "kept in memory until they can be."
                    )
                self._refused = True

    def sync(self) -> None:
        """Have all lines on the disk.

        Raises:
            OSError: they are not. They are kept, and written again the next time.
        """
        assert self._file is not None, "the file is closed"
        with self._lock:
            try:
                self._write()
            except OSError as error:
                raise named(error, self._path) from None
            length = len(self._unsynced)
        try:
            os.fsync(self._file.fileno())  # without the lock: a disk may take seconds, and a step does not wait for it
        except OSError as error:
            with self._lock:
                self._file.seek(self._synced)  # the system may have dropped any of it, and would not say so again
            raise named(error, self._path) from None
        with self._lock:
            del self._unsynced[:length]
            self._synced += length

    def _write(self) -> None:
        assert self._file is not None, "the file is closed"
        while (written := self._file.tell() - self._synced) < len(self._unsynced):
            self._file.write(self._unsynced[written:])  # a part of it, where room ends on the way
        self._refused = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class MetricsFile(LinesFile):
    """metrics.jsonl of a run: a line at each step."""

    def log(self, record: Record) -> None:
        """Append a record."""
        self.append(record.to_json())
