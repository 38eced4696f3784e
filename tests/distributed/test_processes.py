"""Several processes are one: the same losses, the same batches, one checkpoint format, one decision to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.conftest import make_text
from tests.zygote import Zygote

from gpt2.files import read_json

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals")
OPTIONS = (
    "--tokenizer", "bpe:300", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16",
    "--model.context-length", "16", "--model.dropout", "0", "--train.batch-size", "8", "--train.micro-batch-size", "3",
    "--train.steps", "20", "--train.eval-every", "10", "--train.sample-tokens", "4", "--train.precision", "fp32",
    "--train.device", "cpu",
)  # fmt: skip
"""Four windows a process, in micro-batches of three and one: gradients are summed once, after the last."""


def start(folder: Path, *argv: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpt2", "train", *argv]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def trained(zygote: Zygote, folder: Path, *argv: str, processes: int = 1) -> str:
    """Processes that are forks: what torchrun would say to them stands in their environment."""
    ended = zygote.run(folder, *argv, ranks=processes)
    assert ended["code"] == 0, ended["said"]
    return ended["said"]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines for name in ("train_loss", "grad_norm", "val_loss") if name in line]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "notes.txt").write_text(make_text(400))
    return tmp_path


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_train_as_one(zygote: Zygote, workplace: Path, optimizer: str) -> None:
    options = (*OPTIONS, "--optim.name", optimizer)
    trained(zygote, workplace, "notes.txt", "--run", "one", *options)
    one = losses(workplace / "runs/one")
    assert len(one) >= 42
    for strategy in ("ddp", "fsdp"):
        spread = ("--distributed.strategy", strategy)
        trained(zygote, workplace, "notes.txt", "--run", strategy, *options, *spread, processes=2)
        assert losses(workplace / "runs" / strategy) == pytest.approx(one, rel=1e-6 if optimizer == "adamw" else 1e-5)
        weights = load_file(workplace / "runs" / strategy / "last" / "model.safetensors")
        # Not bit for bit: sums run in another order, and a key's bias, whose true gradient is 0, follows the rounding.
        for name, value in load_file(workplace / "runs/one/last/model.safetensors").items():
            assert (weights[name] - value).norm() < 1e-3 * value.norm(), name


def test_a_run_goes_on_with_another_number_of_processes(zygote: Zygote, workplace: Path) -> None:
    """2 → 1 → 2: each checkpoint is taken up by another number; the losses are those of a run of one."""
    options = (*OPTIONS, "--train.save-every", "5", "--train.keep", "9")
    trained(zygote, workplace, "notes.txt", "--run", "one", *options)
    trained(zygote, workplace, "notes.txt", "--run", "many", *options, processes=2)
    run = workplace / "runs/many"
    for steps, processes in ((15, 1), (20, 2)):
        for folder in sorted((run / "checkpoints").glob("step-*"))[-1:]:
            (folder / "MANIFEST.json").unlink()  # back by one checkpoint
        said = trained(zygote, workplace, "--resume", "runs/many", processes=processes)
        assert f"step-{steps - 5 if steps == 20 else 15:08d}" in said
    assert losses(run) == pytest.approx(losses(workplace / "runs/one"), rel=1e-6)


@pytest.mark.parametrize(
    ("to", "number"),
    [
        pytest.param("worker", signal.SIGUSR1, marks=pytest.mark.slow),
        ("launcher", signal.SIGTERM),
        pytest.param("launcher", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_stops_all_at_the_same_step(workplace: Path, to: str, number: signal.Signals) -> None:
    process = start(workplace, "notes.txt", "--run", "many", *OPTIONS, "--train.steps", "100000",
                    "--distributed.processes", "2")  # fmt: skip
    metrics = workplace / "runs/many/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "gpt2 train"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]) if to == "worker" else process.pid, number)
    _, said = process.communicate(timeout=60)  # the workers hold its stderr: it ends when they do
    assert process.returncode in (128 + signal.SIGUSR1, 128 + signal.SIGTERM, -signal.SIGKILL), said
    state = read_json(workplace / "runs/many/run_state.json")
    assert state["status"] == "preempted"
    assert (workplace / "runs/many/checkpoints" / f"step-{state['step']:08d}" / "MANIFEST.json").exists()
    assert "Traceback" not in said


COPYING = """
import os, sys
import torch
import gpt2.recipes.run as run
from gpt2.cli import main
snapshot = run.snapshot
def told(*arguments):
    print("copied by", os.environ["RANK"], flush=True)
    return snapshot(*arguments)
run.snapshot = told
main(sys.argv[1:])
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_only_the_first_process_copies_the_state(workplace: Path, strategy: str) -> None:
    command = ("train", "notes.txt", "--run", "it", *OPTIONS, "--distributed.strategy", strategy)
    numbers = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(20_000 + os.getpid() % 10_000)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COPYING, *command],
            cwd=workplace,
            env={**os.environ, **numbers, "OMP_NUM_THREADS": "1", "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said == ["copied by 0\n" * 2, ""]  # at steps 10 and 20


def test_a_mistake_is_said_once(workplace: Path) -> None:
    for argv in (("missing.txt",), ("notes.txt", "--train.batch-size", "9")):
        process = start(workplace, *argv, "--distributed.processes", "2")
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert said.count("Error") == 1
        assert "Traceback" not in said
        assert "torch/distributed" not in said
    assert "--train.batch-size 8 or 10" in said
    assert not (workplace / "runs/.prepared").exists()
