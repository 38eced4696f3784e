"""A disk of any size: training goes to its last step, the message says no space is left, what was saved is whole."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import Answer
from tests.crash.test_crash_points import OPTIONS, begin, goes_on_as, whole  # noqa: F401 - fixtures
from tests.zygote import Zygote

from gpt2.files import read_json
from gpt2.training import checkpoint
from gpt2.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can make a small disk of memory"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=False, stderr=subprocess.DEVNULL)  # we may still be in it


def mounted(place: Path, size: int) -> bool:
    """A disk of so many bytes at this place, empty."""
    subprocess.run(["umount", str(place)], check=False, stderr=subprocess.DEVNULL)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def used(folder: Path) -> int:
    """Bytes on a disk of whole pages."""
    return sum(4096 * -(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())


def full_disks(zygote: Zygote, whole: Path, disk: Path, sizes: int) -> None:  # noqa: F811
    """From a disk that holds the prepared text and little more, to one that holds the run."""
    least = used(whole.parent / ".prepared") + used(whole.parents[1] / "notes.txt") + 16 * 4096
    most = least + 4 * used(whole / "checkpoints") + 2**20
    refused = 0
    for number in range(sizes):
        if not mounted(disk, least + (most - least) * number // sizes):
            pytest.skip("no disk can be mounted here")
        begin(whole, disk / "place")
        ended = zygote.run(disk / "place", "notes.txt", "--run", "it", "--auto-resume", *OPTIONS)
        assert ended["code"] in (0, 2), ended["said"]
        assert "Traceback" not in ended["said"]
        run = disk / "place/runs/it"
        if ended["code"] == 2:
            refused += 1
            said = " ".join(ended["said"].split())
            assert "No space left" in said, said
            # Either it did not begin, or it made its last step.
            began = (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size
            assert "while saving the last checkpoint" in said or not (began or "Training goes on" in said), said
        else:
            assert (run / "last").resolve().name == "step-00000006"
        for found in checkpoint.list_checkpoints(run):
            checkpoint.verify(found)
        if (run / "run.json").exists() and (run / "run_state.json").exists():
            read_json(run / "run_state.json")
        if ended["code"] == 2:  # room is made: the same command goes on
            aside = disk.parent / "aside"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(disk / "place", aside, symlinks=True)
            mounted(disk, 2 * most)
            shutil.copytree(aside, disk / "place", symlinks=True)
            goes_on_as(zygote, whole, disk / "place")
    print(f"{refused} of {sizes} disks were too small")
    assert refused


@pytest.mark.parametrize("room_again", [True, False])
def test_a_disk_that_fills_up_while_training(
    cli: Callable[..., Answer],
    whole: Path,  # noqa: F811
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    room_again: bool,
) -> None:
    """To the last byte, after the first checkpoint: nobody's step is lost, no line is there twice, none is missing."""
    if not mounted(disk, 2**25):
        pytest.skip("no disk can be mounted here")
    begin(whole, disk / "place")
    monkeypatch.chdir(disk / "place")
    train_step, hog = Trainer.train_step, disk / "hog"

    def while_it_fills(self: Trainer) -> object:
        record = train_step(self)
        if self.step == 11:
            while not (disk / "place/runs/it/last").exists():
                time.sleep(0.01)
            with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        if self.step == 35 and room_again:
            hog.unlink()
        return record

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", while_it_fills)
        answer = cli("train", "notes.txt", "--run", "it", *OPTIONS, "--train.steps", "40", "--train.eval-every", "10")
    run = disk / "place/runs/it"
    assert "Training goes on" in answer.err and "No space left" in answer.err
    assert answer.err.count("kept in memory") == 1, "the file's last page was full after some steps"
    checkpoint.verify((run / "last").resolve())
    if not room_again:
        assert answer.code == 2
        assert "while saving the last checkpoint" in answer.err, "it came to its last step"
        assert (run / "last").resolve().name == "step-00000010"
        hog.unlink()
        assert cli("train", "--resume", "runs/it").code == 0
    else:
        assert answer.code == 0, answer.err
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [*range(1, 41)]
    assert [json.loads(line)["step"] for line in (run / "samples.jsonl").read_text().splitlines()] == [10, 20, 30, 40]


def test_a_few_full_disks(zygote: Zygote, whole: Path, disk: Path) -> None:  # noqa: F811
    full_disks(zygote, whole, disk, sizes=2)


@pytest.mark.slow
def test_a_hundred_full_disks(zygote: Zygote, whole: Path, disk: Path) -> None:  # noqa: F811
    full_disks(zygote, whole, disk, sizes=100)
