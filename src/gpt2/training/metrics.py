"""What is known after each optimizer step, and the file that keeps it: one JSON object a line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from gpt2.console import warn
from gpt2.files import atomic_open


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
    """Leave out of a file of JSON lines what belongs to later steps, and a last line that was cut off."""
    kept = [line for line, value in _lines(path) if value["step"] <= step] if path.exists() else []
    with atomic_open(path, "w") as file:
        file.writelines(line + "\n" for line in kept)


class MetricsFile:
    """metrics.jsonl of a run: appended to at each step, cut back to a checkpoint's step on resume."""

    def __init__(self, path: Path, keep_to_step: int = 0) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.cut_back(keep_to_step)

    def cut_back(self, step: int) -> None:
        """Forget what belongs to later steps; they will be made again."""
        self.close()
        cut_back(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        """Append a record; it has left this process when this returns."""
        assert self._file is not None, "the file is closed"
        self._file.write(json.dumps(record.to_json()) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
