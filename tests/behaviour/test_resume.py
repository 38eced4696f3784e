"""A run that was stopped and resumed is the run that never stopped, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Answer, make_text

from gpt2.files import read_json
from gpt2.training.trainer import Trainer

Cli = Callable[..., Answer]
STEPS = 12
OPTIONS = (
    "--tokenizer", "bpe:300", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16",
    "--model.context-length", "16", "--model.dropout", "0.2", "--train.batch-size", "6",
    "--train.micro-batch-size", "4", "--train.steps", str(STEPS), "--train.eval-every", "5",
    "--train.sample-tokens", "4", "--train.keep", "99", "--schedule.average", "0.4",
)  # fmt: skip
"""Dropout, accumulation (4 + 2) and the mean of the weights are on, and an epoch ends in mid-batch."""


@pytest.fixture
def uninterrupted(cli: Cli, workplace: Path) -> Path:
    (workplace / "notes.txt").write_text(make_text(400))
    answer = cli("train", "notes.txt", "--run", "whole", *OPTIONS)
    assert answer.code == 0, answer.err
    return workplace / "runs" / "whole"


def lines(run: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def numbers(run: Path) -> list[dict[str, float]]:
    """The metrics without the clock's."""
    clocks = ("seconds", "tokens_per_second")
    return [{key: value for key, value in line.items() if key not in clocks} for line in lines(run, "metrics.jsonl")]


def is_same(run: Path, whole: Path) -> None:
    """Weights, optimizer, random order, metrics and samples agree in every bit."""
    for name in ("model.safetensors", "training_state.safetensors"):
        ours, theirs = load_file(run / "last" / name), load_file(whole / "last" / name)
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            assert torch.equal(tensor, theirs[key]), f"{name}: {key}"
    assert read_json(run / "last" / "training_state.json") == read_json(whole / "last" / "training_state.json")
    assert numbers(run) == numbers(whole)
    assert (run / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()


def test_stopped_at_any_step(cli: Cli, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after every single step in turn, before its validation if there is one: one run, resumed twelve times."""
    train_step = Trainer.train_step

    def step_and_stop(self: Trainer) -> object:
        record = train_step(self)
        self.stop_wished = True
        return record

    monkeypatch.setattr(Trainer, "train_step", step_and_stop)
    answers = [cli("train", "notes.txt", "--run", "stopped", *OPTIONS)]
    answers += [cli("train", "--resume", "runs/stopped") for _ in range(STEPS)]
    assert [answer.code for answer in answers] == [143] * STEPS + [0], answers[0].err
    is_same(uninterrupted.parent / "stopped", uninterrupted)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ask the next command to stop when its N-th validation has begun."""

    def ask(number: int) -> None:
        begun = 0

        def watched(trainer: Trainer, batches: Iterable[object]) -> Iterator[object]:
            nonlocal begun
            begun += 1
            if begun == number:
                signal.raise_signal(signal.SIGINT)
            yield from heeding(trainer, batches)

        monkeypatch.setattr(Trainer, "heeding", watched)

    heeding = Trainer.heeding
    return ask


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_validation_that_was_broken_off_is_made_by_the_resumed_run(
    cli: Cli, uninterrupted: Path, asked: Callable[[int], None], number: int
) -> None:
    """At its rhythm (5), at the end of an epoch (8), at the last step (12); and once more by the next command."""
    run = uninterrupted.parent / "stopped"
    asked(number)
    answers = [cli("train", "notes.txt", "--run", "stopped", *OPTIONS)]
    left = numbers(run)
    asked(1)
    answers += [cli("train", "--resume", "runs/stopped")]
    assert numbers(run) == left
    asked(0)
    answers += [cli("train", "--resume", "runs/stopped")]
    assert [answer.code for answer in answers] == [130, 130, 0], answers
    assert "saved" in answers[0].err
    is_same(run, uninterrupted)
    assert os.readlink(run / "best") == os.readlink(uninterrupted / "best")
    assert cli("train", "--resume", "runs/stopped").code == 2


@pytest.mark.parametrize("how", ["--finish", "--fork"])
def test_a_run_that_goes_on_otherwise_makes_the_validation_too(
    cli: Cli, uninterrupted: Path, asked: Callable[[int], None], how: str
) -> None:
    for step in (8, 10, 12):
        (uninterrupted / f"checkpoints/step-{step:08d}/MANIFEST.json").unlink()
    asked(1)
    assert cli("train", "notes.txt", "--run", "stopped", *OPTIONS).code == 130
    asked(0)
    ended = []
    for name in ("whole", "stopped"):
        other = ("--run", f"{name}-fork", "--train.eval-every", "3") if how == "--fork" else ()
        assert cli("train", how, name, "--train.steps", "4", *other).code == 0
        ended.append(uninterrupted.parent / (f"{name}-fork" if other else name))
    of_whole, of_stopped = ([*numbers(run), *lines(run, "samples.jsonl")] for run in ended)
    assert of_whole == [line for line in of_stopped if how == "--finish" or line["step"] > 5]
    assert [line["step"] for line in numbers(ended[1])][-5:] == [5, 6, 7, 8, 9]
    states = [read_json(run / "last/training_state.json") for run in ended]
    assert states[0] == states[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_killed_without_warning(cli: Cli, workplace: Path, uninterrupted: Path) -> None:
    """SIGKILL at a moment of its own choosing; the steps since the last checkpoint are made again."""
    argv = [sys.executable, "-m", "gpt2", "train", "notes.txt", "--run", "killed", *OPTIONS]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    metrics = workplace / "runs/killed/metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 6):
        time.sleep(0.002)
    process.kill()
    process.wait()
    torch.set_num_threads(1)
    answer = cli("train", "--resume", "runs/killed")
    assert answer.code == 0 or "is complete" in answer.err
    is_same(workplace / "runs/killed", uninterrupted)


def test_from_the_checkpoint_before_a_damaged_one(cli: Cli, uninterrupted: Path) -> None:
    """The newest checkpoint rots: the run goes back one, says so, and arrives at the same end."""
    kept = {path.name: path.read_bytes() for path in (uninterrupted / "last").iterdir()}
    expected, samples = numbers(uninterrupted), (uninterrupted / "samples.jsonl").read_text()
    (uninterrupted / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors").write_bytes(b"rot")
    answer = cli("train", "--resume", "runs/whole")
    assert answer.code == 0, answer.err
    assert "model.safetensors is damaged" in answer.err
    assert numbers(uninterrupted) == expected
    assert (uninterrupted / "samples.jsonl").read_text() == samples
    for name in ("model.safetensors", "training_state.json"):
        assert (uninterrupted / "last" / name).read_bytes() == kept[name]


def test_the_same_command_twice_gives_the_same_run(cli: Cli, uninterrupted: Path) -> None:
    assert cli("train", "notes.txt", "--run", "again", *OPTIONS).code == 0
    is_same(uninterrupted.parent / "again", uninterrupted)


def test_run_json_repeats_the_run(cli: Cli, uninterrupted: Path, workplace: Path) -> None:
    """The settings of run.json, given as a configuration, are the whole of the run."""
    answer = cli("train", "--config", "runs/whole/run.json", "--run", "repeated")
    assert answer.code == 0, answer.err
    is_same(uninterrupted.parent / "repeated", uninterrupted)
