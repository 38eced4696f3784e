"""Several processes are one: the same losses, the same batches, one checkpoint format, one decision to stop."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import make_text
from tests.zygote import Zygote, free_port
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig

from gpt2.files import read_json, sha256_file
from gpt2.recipes.launch import launch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals")
OPTIONS = (
    "--tokenizer", "bpe:300", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "16",
    "--model.context-length", "16", "--model.dropout", "0", "--train.batch-size", "8", "--train.micro-batch-size", "3",
    "--train.steps", "20", "--train.eval-every", "10", "--train.sample-tokens", "4", "--train.precision", "fp32",
    "--train.device", "cpu", "--schedule.average", "0.4",
)  # fmt: skip
"""Four windows a process, in micro-batches of three and one: gradients are summed once, after the last."""


def start(folder: Path, *argv: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gpt2", "train", *argv]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def trained(zygote: Zygote, folder: Path, *argv: str, processes: int = 1, **how: str) -> str:
    """Processes that are forks: what torchrun would say to them stands in their environment."""
    ended = zygote.run(folder, *argv, ranks=processes, **how)
    assert ended["code"] == 0, ended["said"]
    return ended["said"]


def lines(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def losses(run: Path, *but: str) -> list[float]:
    names = [name for name in ("train_loss", "grad_norm", "val_loss") if name not in but]
    return [line[name] for line in lines(run / "metrics.jsonl") for name in names if name in line]


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
        assert losses(workplace / "runs" / strategy) == pytest.approx(one, rel=1e-6)
        weights = load_file(workplace / "runs" / strategy / "last" / "model.safetensors")
        # Not bit for bit: sums run in another order, and a key's bias, whose true gradient is 0, follows the rounding.
        for name, value in load_file(workplace / "runs/one/last/model.safetensors").items():
            assert (weights[name] - value).norm() < 1e-3 * value.norm(), name


def test_shares_in_bf16_learn_as_one_process(zygote: Zygote, workplace: Path) -> None:
    """Where they gather weights in bf16, and one process rounds them in each product: the norms scatter by 1 %.

    No device has to hold the whole model.
    """
    options = (*OPTIONS, "--optim.name", "adamw", "--train.precision", "bf16")
    trained(zygote, workplace, "notes.txt", "--run", "one", *options)
    shared = (*options, "--distributed.strategy", "fsdp")
    trained(zygote, workplace, "notes.txt", "--run", "fsdp", *shared, processes=2, before="refuse_to_move_whole")
    one = losses(workplace / "runs/one", "grad_norm")
    assert losses(workplace / "runs/fsdp", "grad_norm") == pytest.approx(one, rel=2e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_gradient_that_is_no_number_in_one_process_is_passed_over_by_all(
    zygote: Zygote, workplace: Path, strategy: str
) -> None:
    spread = ("--distributed.strategy", strategy)
    trained(zygote, workplace, "notes.txt", "--run", "many", *OPTIONS, *spread, processes=2, before="lose_a_gradient")
    records = lines(workplace / "runs/many/metrics.jsonl")
    assert [record["step"] for record in records if record.get("skipped")] == [5]
    assert len(records) == 20
    weights = [lines(workplace / f"weights-{rank}.jsonl") for rank in (0, 1)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) == 20


@pytest.mark.parametrize(
    ("strategy", "where"),
    [
        ("ddp", "lack_memory"),
        ("fsdp", "lack_memory"),
        ("fsdp", "lack_memory_in_a_block"),
        ("fsdp", "lack_memory_in_the_loss"),
    ],
)
def test_where_memory_ends_in_one_process_all_make_the_step_again(
    zygote: Zygote, workplace: Path, strategy: str, where: str
) -> None:
    options = (*OPTIONS, "--distributed.strategy", strategy)
    trained(zygote, workplace, "notes.txt", "--run", "roomy", *options, processes=2)
    said = trained(zygote, workplace, "notes.txt", "--run", "tight", *options, processes=2, before=where)
    assert said.count("The step is made again") == 2  # with 2 at once, and with 1
    assert losses(workplace / "runs/tight") == pytest.approx(losses(workplace / "runs/roomy"), rel=1e-6)
    assert read_json(workplace / "runs/tight/run.json")["settings"]["train"]["shrunk"] == [[4, 2], [4, 1]]


def test_a_batch_in_one_part_that_memory_is_too_small_for_is_met_before_others_wait_for_its_gradient(
    zygote: Zygote, workplace: Path
) -> None:
    options = (*OPTIONS, "--train.micro-batch-size", "4")
    trained(zygote, workplace, "notes.txt", "--run", "roomy", *options, processes=2)
    before = "lack_memory_in_any_backward_pass"  # from the second step on: the optimizers' memory is as full as ever
    said = trained(zygote, workplace, "notes.txt", "--run", "tight", *options, processes=2, before=before)
    assert said.count("The step is made again") == 1
    assert losses(workplace / "runs/tight") == pytest.approx(losses(workplace / "runs/roomy"), rel=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_where_memory_ends_in_the_middle_of_a_sum_all_end_and_it_is_said_what_to_do(
    zygote: Zygote, workplace: Path, strategy: str
) -> None:
    options = ("--run", "tight", *OPTIONS, "--distributed.strategy", strategy)
    ended = zygote.run(workplace, "notes.txt", *options, ranks=2, before="lack_memory_in_the_last_backward_pass")
    assert ended["code"] == 2
    assert "Another process has ended in the middle of step 5" in ended["said"]
    assert "Error in process 1: Memory ended at step 5" in ended["said"]
    assert "Go on with --train.micro-batch-size 2" in ended["said"]
    assert "Traceback" not in ended["said"], ended["said"]
    trained(zygote, workplace, "--resume", "tight", processes=2)
    settings = read_json(workplace / "runs/tight/checkpoints/step-00000020/run.json")["settings"]
    assert settings["train"]["shrunk"] == [[4, 2]]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_where_one_process_cannot_compile_it_goes_on_without(zygote: Zygote, workplace: Path, strategy: str) -> None:
    options = (*OPTIONS, "--distributed.strategy", strategy)
    trained(zygote, workplace, "notes.txt", "--run", "plain", *options, processes=2)
    compiled = ("--run", "compiled", "--train.compile", "true")
    trained(zygote, workplace, "notes.txt", *compiled, *options, processes=2, before="refuse_to_compile")
    assert all(lines(workplace / f"compiled-{rank}.jsonl") for rank in (0, 1))
    assert losses(workplace / "runs/compiled") == pytest.approx(losses(workplace / "runs/plain"), rel=1e-6)


def batches(folder: Path) -> dict[int, list[str]]:
    """Step → the hashes of all its sequences, those of the first process first; then they are forgotten."""
    found: dict[int, list[str]] = {}
    for file in sorted(folder.glob("batches-*.jsonl")):
        of_rank = dict(lines(file))
        for step, hashes in of_rank.items():
            found.setdefault(step, []).extend(hashes)
        file.unlink()
    return found


def test_many_processes_that_go_on_make_the_run_that_never_stopped(zygote: Zygote, workplace: Path) -> None:
    """Beyond two, the order in which numbers are added up depends on where they lie in what is summed."""
    options = (*OPTIONS, "--train.save-every", "5", "--train.keep", "9")
    trained(zygote, workplace, "notes.txt", "--run", "many", *options, processes=4)
    whole, weights = (
        losses(workplace / "runs/many"),
        workplace / "runs/many/checkpoints/step-00000020/model.safetensors",
    )
    digest = sha256_file(weights)
    for step in (10, 15, 20):
        (workplace / f"runs/many/checkpoints/step-{step:08d}/MANIFEST.json").unlink()
    assert "step-00000005" in trained(zygote, workplace, "--resume", "many", processes=4)
    assert losses(workplace / "runs/many") == whole
    assert sha256_file(weights) == digest


def test_a_run_goes_on_with_another_number_of_processes(zygote: Zygote, workplace: Path) -> None:
    """2 → 1 → 2: each checkpoint is taken up by another number; losses and batches are those of a run of one."""
    options = (*OPTIONS, "--train.save-every", "5", "--train.keep", "9")
    trained(zygote, workplace, "notes.txt", "--run", "one", *options, before="note_batches")
    of_one = batches(workplace)
    assert [len(set(hashes)) for hashes in of_one.values()] == [8] * 20
    trained(zygote, workplace, "notes.txt", "--run", "many", *options, processes=2, before="note_batches")
    assert batches(workplace) == of_one
    run = workplace / "runs/many"
    for steps, processes in ((15, 1), (20, 2)):
        for folder in sorted((run / "checkpoints").glob("step-*"))[-1:]:
            (folder / "MANIFEST.json").unlink()  # back by one checkpoint
        said = trained(zygote, workplace, "--resume", "runs/many", processes=processes, before="note_batches")
        assert f"step-{steps - 5 if steps == 20 else 15:08d}" in said
        assert batches(workplace) == {step: of_one[step] for step in range(15, 20)}
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
    _, said = process.communicate(timeout=180)  # the workers hold its stderr: it ends when they do
    assert process.returncode in (128 + signal.SIGUSR1, 128 + signal.SIGTERM, -signal.SIGKILL), said
    state = read_json(workplace / "runs/many/run_state.json")
    assert state["status"] == "preempted"
    assert (workplace / "runs/many/checkpoints" / f"step-{state['step']:08d}" / "MANIFEST.json").exists()
    assert "Traceback" not in said


def test_ctrl_c_is_heard_while_others_have_not_come(workplace: Path) -> None:
    port = free_port()
    numbers = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-m", "gpt2", "train", "notes.txt", *OPTIONS]
    environment = {**os.environ, **numbers}
    process = subprocess.Popen(command, cwd=workplace, env=environment, stderr=subprocess.PIPE, text=True)
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    time.sleep(0.2)  # it waits now
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.strip() == "Stopped."


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_validation_is_broken_off_by_all_at_the_same_batch(zygote: Zygote, workplace: Path, strategy: str) -> None:
    """One of them is asked to stop in the middle; resumed, it is the run that never stopped."""
    (workplace / "notes.txt").write_text(make_text(4000))
    options = (*OPTIONS, "--distributed.strategy", strategy)
    trained(zygote, workplace, "notes.txt", "--run", "whole", *options, processes=2)
    ended = zygote.run(workplace, "notes.txt", "--run", "stopped", *options, ranks=2, before="ask_in_a_validation")
    assert ended["code"] == 128 + signal.SIGTERM, ended["said"]  # the first was told by the other
    assert "Stopped at step 10 and saved" in ended["said"]
    assert [lines(workplace / f"validated-{rank}.jsonl") for rank in (0, 1)] == [[[10, 0], [10, 1]]] * 2
    stopped = workplace / "runs/stopped"
    assert len(lines(stopped / "metrics.jsonl")) == 9
    trained(zygote, workplace, "--resume", "runs/stopped", processes=2)
    assert [line["step"] for line in lines(stopped / "metrics.jsonl")] == list(range(1, 21))
    assert losses(stopped) == losses(workplace / "runs/whole")


def test_the_others_wait_while_the_first_prepares_for_long(zygote: Zygote, workplace: Path) -> None:
    ended = zygote.run(workplace, "notes.txt", *OPTIONS, ranks=2, before="prepare_for_long")
    assert ended["code"] == 2
    assert "It took long." in ended["said"]
    assert "Traceback" not in ended["said"], ended["said"]


def test_a_run_goes_on_with_no_number_of_processes_that_its_batch_cannot_be_divided_among(
    zygote: Zygote, workplace: Path
) -> None:
    trained(zygote, workplace, "notes.txt", "--run", "it", *OPTIONS, "--train.keep", "9")
    (workplace / "runs/it/checkpoints/step-00000020/MANIFEST.json").unlink()
    ended = zygote.run(workplace, "--resume", "it", ranks=3)
    assert ended["code"] == 2
    assert ended["said"].count("Error") == 1
    assert "Go on with 2 or 4 (--distributed.processes)." in ended["said"]


def test_a_run_that_goes_on_keeps_its_strategy_and_counts_its_processes(zygote: Zygote, workplace: Path) -> None:
    """Typed again or not: `--auto-resume` is the same line as at first, `--resume` names what is to change."""
    begin = ("notes.txt", "--run", "many", "--auto-resume", *OPTIONS, "--distributed.strategy", "fsdp")
    again = (
        (1, ("--resume", "many")),
        (2, ("--resume", "many", "--distributed.processes", "2")),
        (2, begin[:-2]),
    )
    trained(zygote, workplace, *begin, processes=2)
    run = workplace / "runs/many"
    for processes, argv in again:
        for folder in (run / "checkpoints").glob("step-00000020"):
            (folder / "MANIFEST.json").unlink()
        (run / "run_state.json").unlink()
        trained(zygote, workplace, *argv, processes=processes)
        settings = read_json(run / "checkpoints/step-00000020/run.json")["settings"]
        assert settings["distributed"] == {"processes": processes, "strategy": "fsdp"}


@pytest.mark.parametrize(("asked", "seconds"), [(None, 600), ("45", 45)])
def test_a_signal_leaves_time_for_a_long_step_and_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, seconds: int
) -> None:
    begun: list[LaunchConfig] = []

    def begin(config: LaunchConfig, *command: str) -> Callable[..., None]:
        begun.append(config)
        return lambda *argv: None

    monkeypatch.setattr("gpt2.recipes.launch.elastic_launch", begin)
    monkeypatch.setattr("gpt2.recipes.launch.logging.disable", lambda level: None)
    for name, value in (("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", asked), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value or "")  # so that it is put back
        if value is None:
            monkeypatch.delenv(name)
    launch(["notes.txt"], 2)
    assert [config.shutdown_timeout for config in begun] == [seconds]


@pytest.mark.parametrize(("ended", "code"), [(2, 2), (-signal.SIGKILL, 128 + signal.SIGKILL)])
def test_the_command_ends_as_the_first_process_that_failed(
    monkeypatch: pytest.MonkeyPatch, ended: int, code: int
) -> None:
    def begin(config: LaunchConfig, *command: str) -> Callable[..., None]:
        def failing(*argv: str) -> None:
            raise ChildFailedError("gpt2", {0: ProcessFailure(0, 1, ended, "")})

        return failing

    monkeypatch.setattr("gpt2.recipes.launch.elastic_launch", begin)
    monkeypatch.setattr("gpt2.recipes.launch.logging.disable", lambda level: None)
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(SystemExit) as leaving:
        launch(["notes.txt"], 2)
    assert leaving.value.code == code


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
    numbers = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
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
    said = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said == ["copied by 0\n" * 2, ""]  # at steps 10 and 20


def test_a_mistake_is_said_once(workplace: Path) -> None:
    for argv in (("missing.txt",), ("notes.txt", "--train.batch-size", "9")):
        process = start(workplace, *argv, "--distributed.processes", "2")
        _, said = process.communicate(timeout=180)
        assert process.returncode == 2, said
        assert said.count("Error") == 1
        assert "Traceback" not in said
        assert "torch/distributed" not in said
    assert "--train.batch-size 8 or 10" in said
    assert not (workplace / "runs/.prepared").exists()
