"""Killed at any moment, a run goes on to the end it would have had: weights, optimizer, metrics, samples, every bit.

A few moments of each kind in `make test`, all of them in `make test-slow`.
"""

import itertools
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.behaviour.test_resume import is_same
from tests.conftest import make_text
from tests.zygote import Zygote

from gpt2.files import read_json
from gpt2.training import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and Linux's strace")
OPTIONS = (
    "--tokenizer", "bpe:300", "--model.n-layer", "1", "--model.n-head", "2", "--model.n-embd", "16",
    "--model.context-length", "16", "--model.dropout", "0.2", "--train.batch-size", "6",
    "--train.micro-batch-size", "4", "--train.steps", "6", "--train.eval-every", "2", "--train.keep", "1",
    "--train.sample-tokens", "4", "--schedule.average", "0.4",
)  # fmt: skip
"""Three saves: one in the background, one that removes an old checkpoint, and the last, which is waited for."""


def can_trace() -> bool:
    return (
        shutil.which("strace") is not None
        and not subprocess.run(
            ["strace", "-qq", "-o", "/dev/null", "true"], check=False, stderr=subprocess.DEVNULL
        ).returncode
    )


@pytest.fixture(scope="module")
def whole(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted; its folder's folder has the text, and the tokens prepared."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "notes.txt").write_text(make_text(400))
    ended = zygote.run(folder, "notes.txt", "--run", "it", *OPTIONS)
    assert ended["code"] == 0, ended["said"]
    return folder / "runs/it"


def begin(whole: Path, folder: Path) -> None:
    """The same text, prepared, and no run yet."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.parent / ".prepared", folder / "runs/.prepared")
    shutil.copy(whole.parents[1] / "notes.txt", folder)


def goes_on_as(zygote: Zygote, whole: Path, folder: Path, ranks: int = 1) -> None:
    """Whatever lies there: each checkpoint is whole or none, and the same command comes to the same end."""
    for found in checkpoint.list_checkpoints(folder / "runs/it"):
        checkpoint.verify(found)
    ended = zygote.run(folder, "notes.txt", "--run", "it", "--auto-resume", *OPTIONS, ranks=ranks)
    assert ended["code"] == 0, ended["said"]
    is_same(folder / "runs/it", whole)
    assert not list((folder / "runs/it/checkpoints").glob(".*")), "what was half written is swept away"


def crash_points(zygote: Zygote, whole: Path, folder: Path, save: int, every: int, ranks: int = 1) -> int:
    """Kill a run at each system call from the beginning of a save on, until it ends before: how many there were."""
    for number, call in enumerate(itertools.count(1, every)):
        begin(whole, folder)
        ended = zygote.run(
            folder, "notes.txt", "--run", "it", "--auto-resume", *OPTIONS, save=save, call=call, ranks=ranks
        )
        if ended["code"] == 0:
            return number
        assert ended["code"] == -9, ended["said"]
        goes_on_as(zygote, whole, folder, ranks)
    raise AssertionError


@pytest.mark.skipif(not can_trace(), reason="needs strace")
@pytest.mark.parametrize("save", [1, 3])
def test_killed_at_some_system_calls_of_a_save(zygote: Zygote, whole: Path, tmp_path: Path, save: int) -> None:
    assert crash_points(zygote, whole, tmp_path / "place", save, every=61) >= 2


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="needs strace")
@pytest.mark.parametrize("save", [1, 2, 3])
def test_killed_at_every_system_call_of_a_save(zygote: Zygote, whole: Path, tmp_path: Path, save: int) -> None:
    points = crash_points(zygote, whole, tmp_path / "place", save, every=1)
    print(f"save {save}: {points} crash points")
    assert points >= 50


@pytest.mark.slow
@pytest.mark.skipif(not can_trace(), reason="needs strace")
def test_killed_at_system_calls_of_a_save_of_two_processes(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    begin(whole, both)
    ended = zygote.run(both, "notes.txt", "--run", "it", *OPTIONS, ranks=2)
    assert ended["code"] == 0, ended["said"]
    points = crash_points(zygote, both / "runs/it", tmp_path / "place", 2, every=1, ranks=2)
    print(f"two processes: {points} crash points")
    assert points >= 75


def killed_at_random(zygote: Zygote, whole: Path, folder: Path, kills: int, seed: int) -> None:
    """Begin, and kill at a random moment, again and again; now and then the run comes to its end before."""
    draw = random.Random(seed)
    begin(whole, folder)
    while kills:
        command = ("notes.txt", "--run", "it", "--auto-resume", *OPTIONS)
        ended = zygote.run(folder, *command, seconds=draw.uniform(0.02, 0.6))
        assert ended["code"] in (0, -9), ended["said"]
        kills -= ended["code"] == -9
        state = folder / "runs/it/run_state.json"
        if state.exists() and read_json(state)["status"] == "completed":
            is_same(folder / "runs/it", whole)
            begin(whole, folder)
    goes_on_as(zygote, whole, folder)


def test_killed_a_few_times_at_random(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    killed_at_random(zygote, whole, tmp_path / "place", kills=5, seed=1)


@pytest.mark.slow
def test_killed_two_hundred_times_at_random(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    killed_at_random(zygote, whole, tmp_path / "place", kills=200, seed=2)


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_flipped_bit_in_each_file_is_found_and_named(zygote: Zygote, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(3)
    place, aside = tmp_path / "place", tmp_path / "aside"
    begin(whole, place)
    ended = zygote.run(place, "notes.txt", "--run", "it", *OPTIONS, "--train.keep", "9")
    assert ended["code"] == 0, ended["said"]
    shutil.copytree(place, aside, symlinks=True)
    names = sorted(path.name for path in (place / "runs/it/last").iterdir())
    assert len(names) >= 10
    for name in names:
        shutil.rmtree(place)
        shutil.copytree(aside, place, symlinks=True)
        broken = place / "runs/it/last" / name
        flipped(broken, draw.randrange(8 * broken.stat().st_size))
        ended = zygote.run(place, "--resume", "runs/it")
        assert ended["code"] == 0, ended["said"]
        assert name in ended["said"], "it is named"
        assert ended["said"].count("instead.") == 1
        assert "Going on from runs/it/checkpoints/step-00000004" in ended["said"]
        is_same(place / "runs/it", whole)
