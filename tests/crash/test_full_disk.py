"""A disk of any size: the message says that no space is left, and what was saved before is whole."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.crash.test_crash_points import OPTIONS, begin, goes_on_as, whole  # noqa: F401 - fixtures
from tests.zygote import Zygote

from gpt2.files import read_json
from gpt2.training import checkpoint

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can make a small disk of memory"
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    yield place
    subprocess.run(["umount", str(place)], check=False, stderr=subprocess.DEVNULL)


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
        if ended["code"] == 2:
            refused += 1
            said = " ".join(ended["said"].split())
            assert "No space left" in said or "could not be saved" in said, said
        run = disk / "place/runs/it"
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


def test_a_few_full_disks(zygote: Zygote, whole: Path, disk: Path) -> None:  # noqa: F811
    full_disks(zygote, whole, disk, sizes=2)


@pytest.mark.slow
def test_a_hundred_full_disks(zygote: Zygote, whole: Path, disk: Path) -> None:  # noqa: F811
    full_disks(zygote, whole, disk, sizes=100)
