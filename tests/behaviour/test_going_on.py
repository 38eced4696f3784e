"""Bringing a run to its end early, starting another from it, and the command that may be repeated for ever."""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import SMALL, Answer, make_text

from gpt2.cli import main
from gpt2.config.presets import PRESETS
from gpt2.config.schema import Settings
from gpt2.files import read_json, write_json
from gpt2.model.budget import Choice
from gpt2.recipes import in_time
from gpt2.training import checkpoint
from gpt2.training.metrics import read_metrics
from gpt2.training.trainer import Trainer

Cli = Callable[..., Answer]
OPTIONS = (
    *SMALL,
    "--train.steps",
    "40",
    "--train.eval-every",
    "10",
    "--train.keep",
    "9",
    "--schedule.name",
    "constant",
)


def rates(run: Path) -> list[float]:
    return [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_halfway(folder: Path) -> Path:
    """Make a run of forty steps in a folder, and stop it after twenty and their validation."""
    train_step = Trainer.train_step

    def step_and_stop(self: Trainer) -> object:
        record = train_step(self)
        self.stop_wished = self.step == 20
        return record

    (folder / "notes.txt").write_text(make_text(600))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.chdir(folder)
        patch.setattr(Trainer, "train_step", step_and_stop)
        patch.setattr(Trainer, "heeding", lambda self, batches: batches)
        main(["train", "notes.txt", "--run", "first", *OPTIONS])
    assert leaving.value.code == 143
    return folder / "runs/first"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    stop_halfway(folder)
    return folder


@pytest.fixture
def halted(stopped: Path, workplace: Path) -> Path:
    """A copy of a run of forty steps that was stopped after twenty; its text is where it was made."""
    shutil.copytree(stopped, workplace, symlinks=True, dirs_exist_ok=True)
    return workplace / "runs/first"


@pytest.fixture
def halted_here(workplace: Path) -> Path:
    """The same, with its text beside it."""
    return stop_halfway(workplace)


def test_finish_brings_the_rate_down_from_where_it_stands(cli: Cli, halted: Path) -> None:
    answer = cli("train", "--finish", "first", "--train.steps", "8", "--distributed.strategy", "fsdp")
    assert answer.code == 0, answer.err
    assert read_json(halted / "run.json")["settings"]["distributed"] == {"processes": 1, "strategy": "fsdp"}
    seen = rates(halted)
    assert len(seen) == 28
    peak = seen[19]
    assert seen[20:] == pytest.approx([peak * (1 - k / 9) for k in range(1, 9)])
    assert (halted / "last" / "model.safetensors").exists()
    assert (halted / "last").resolve().name == "step-00000028"
    answer = cli("train", "--finish", "first", "--train.steps", "5")
    assert answer.code == 2
    assert "complete" in answer.err or "lowest" in answer.err


def test_a_finished_run_is_repeated_by_its_run_json(cli: Cli, halted: Path, workplace: Path) -> None:
    assert cli("train", "--finish", "first", "--train.steps", "8").code == 0
    answer = cli("train", "--config", "runs/first/run.json", "--run", "again")
    assert answer.code == 0, answer.err
    for name, value in load_file(halted / "last/model.safetensors").items():
        assert torch.equal(value, load_file(workplace / "runs/again/last/model.safetensors")[name])


def test_a_length_that_is_typed_takes_the_place_of_a_file_s(cli: Cli, halted: Path, workplace: Path) -> None:
    """Also that of its replans: a run of 8 steps, with a rate that rises and falls in these."""
    assert cli("train", "--finish", "first", "--train.steps", "4").code == 0
    for run, length in (("steps", ("--train.steps", "8")), ("epochs", ("--train.epochs", "0.1"))):
        linear = ("--schedule.name", "linear", "--schedule.warmup", "0.5")
        answer = cli("train", "--config", "runs/first/run.json", "--run", run, *length, *linear)
        assert answer.code == 0, answer.err
        seen = rates(workplace / "runs" / run)
        assert len(seen) < 24
        assert seen[0] < max(seen) > seen[-1]


def test_a_fork_that_got_worse_says_so(cli: Cli, halted: Path, workplace: Path) -> None:
    answer = cli("train", "--fork", "first", "--train.steps", "4", "--optim.lr", "0.5", "--optim.matrix-lr", "0.9")
    assert answer.code == 0
    assert "It got no better" in answer.err
    assert "step-00000020" in answer.err
    assert "It got no better" not in cli("train", "--fork", "first", "--train.steps", "4", "--run", "good").err


@pytest.mark.parametrize("given", [(), ("--model.preset", "gpt2-nano", "--optim.momentum", "0.5")])
def test_a_run_in_minutes_chooses_what_is_not_given(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...]
) -> None:
    monkeypatch.setattr("gpt2.cli.STARTED", time.monotonic())  # this process began long ago
    (workplace / "notes.txt").write_text(make_text(600))
    typed = ("--tokenizer", "bpe:300", "--train.batch-size", "6", "--train.sample-tokens", "0")
    began = time.monotonic()
    answer = cli("train", "notes.txt", "--run", "timed", "--train.minutes", "0.1", *typed, *given)
    assert answer.code == 0, answer.err
    assert time.monotonic() - began < 60  # it ends: the 6 seconds are no property of a busy machine
    assert "expected loss" in answer.err
    settings = read_json(workplace / "runs/timed/run.json")["settings"]
    sizes, steps = settings["model"], settings["train"]["steps"]
    assert settings["train"]["batch_size"] == 6
    assert steps and sizes["n_layer"] and sizes["n_embd"] and sizes["context_length"]
    if given:
        assert (sizes["n_layer"], sizes["n_head"], sizes["n_embd"]) == (3, 3, 48)
        assert settings["optim"]["momentum"] == 0.5
    seen = rates(workplace / "runs/timed")
    assert len(seen) == steps
    if steps > 5:  # a busy machine makes fewer
        assert seen[-1] < 0.3 * max(seen)  # the schedule came to its end
    if not given:
        is_repeated(cli, workplace / "runs/timed")


@pytest.mark.parametrize(
    ("steps", "seconds_a_step", "save_every"),
    [(800, 0.07, 214), (600, 1.0, 30), (10, 60.0, 1)],  # every 15 s; a twentieth of ten minutes; each step
)
def test_a_run_in_minutes_is_saved_now_and_then(steps: int, seconds_a_step: float, save_every: int) -> None:
    best = Choice(PRESETS["gpt2-nano"], 8, steps, seconds_a_step, 4.0)
    applied = in_time._applied(Settings(), Settings(), best, looks=1)
    assert (applied.train.save_every, applied.train.eval_every) == (save_every, steps)
    chosen = Settings.model_validate({"train": {"save_every": 7}})
    assert in_time._applied(chosen, chosen, best, looks=1).train.save_every == 7


def is_repeated(cli: Cli, run: Path) -> None:
    """By its run.json alone: the model that was chosen, the steps that the time came to, the same batches."""
    again = run.parent / "again"
    assert cli("train", "--config", str(run / "run.json"), "--run", "again").code == 0
    settings, repeated = (read_json(folder / "run.json")["settings"] for folder in (run, again))
    assert repeated == {**settings, "run": "again", "train": {**settings["train"], "minutes": None}}
    records = [
        [json.loads(line) for line in (each / "metrics.jsonl").read_text().splitlines()] for each in (run, again)
    ]
    steps = [[(record["step"], record["train_loss"], record["lr"]) for record in each] for each in records]
    assert steps[0] == steps[1]
    for name, value in load_file(run / "last/model.safetensors").items():
        assert torch.equal(value, load_file(again / "last/model.safetensors")[name]), name


def test_finish_in_minutes_is_kept_to(cli: Cli, halted: Path) -> None:
    answer = cli("train", "--finish", "first", "--train.minutes", "0.05")
    assert answer.code == 0, answer.err
    records = [json.loads(line) for line in (halted / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["lr"] < 0.6 * records[19]["lr"]
    assert read_json(halted / "run.json")["settings"]["train"]["steps"] == records[-1]["step"]


def test_a_fork_begins_where_the_other_stands_and_leaves_it_alone(cli: Cli, halted: Path, workplace: Path) -> None:
    before = {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()}
    answer = cli("train", "--fork", "first", "--train.steps", "10", "--optim.lr", "0.001", "--run", "second")
    assert answer.code == 0, answer.err
    assert {path: path.read_bytes() for path in halted.rglob("*") if path.is_file()} == before
    fork = workplace / "runs/second"
    records = [json.loads(line) for line in (fork / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(21, 31))
    assert records[0]["tokens"] == 21 * 4 * 16
    assert max(rates(fork)) == pytest.approx(0.001)
    assert read_json(fork / "run.json")["forked_from"].endswith("first/checkpoints/step-00000020")
    # Of a checkpoint's folder, and under a name of its own where none is given.
    assert cli("train", "--fork", str(halted / "checkpoints/step-00000010"), "--train.steps", "2").code == 0
    assert (workplace / "runs/first-fork/last").resolve().name == "step-00000012"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--finish", "first"), "--train.minutes 3"),
        (("--finish", "first", "--optim.lr", "1"), "--fork"),
        (("--finish", "nothing", "--train.steps", "3"), "no run"),
        (("--resume", "first", "--fork", "first"), "--resume and --fork exclude each other"),
        (("--fork", "first", "--model.n-embd", "32"), "shape"),
        (("--fork", "first", "--tokenizer", "bpe:300"), "tokenizer"),
        (("--fork", "first", "--run", "first"), "another name"),
        (("--fork", "first", "other.txt"), "keeps the text"),
        (("--fork", "first", "--data.stride", "3"), "keeps the text"),
        (("--fork", "first", "--train.seed", "3"), "seed"),
        (("--fork", "first", "--optim.name", "muon"), "keeps the optimizer, adamw"),
        (("--fork", "first", "--train.epochs", "3"), "--train.minutes"),
        (("--fork", "first", "--train.steps", "3", "--train.minutes", "3"), "once"),
        (("--finish", "first", "--train.steps", "3", "--train.device", "abacus"), "--train.device"),
        (("--finish", "first", "--train.steps", "3", "--train.minutes", "3"), "two ends"),
        (("--fork", "nothing"), "no run"),
        (("--resume", "first", "--auto-resume"), "Leave the rest out"),
    ],
)
def test_what_cannot_be_gone_on_with(cli: Cli, halted: Path, argv: tuple[str, ...], said: str) -> None:
    answer = cli("train", *argv)
    assert answer.code == 2, answer.err
    assert answer.err.count("Error:") == 1
    assert said in answer.err


def test_what_is_refused_changes_nothing(cli: Cli, halted_here: Path, workplace: Path) -> None:
    before = {path: path.read_bytes() for path in halted_here.rglob("*") if path.is_file()}
    (workplace / "notes.txt").write_text(make_text(700))
    for argv in (("--finish", "first", "--train.steps", "3"), ("--fork", "first"), ("--resume", "first")):
        answer = cli("train", *argv)
        assert answer.code == 2
        assert "notes.txt" in answer.err
        assert "Bringing" not in answer.err and "begins" not in answer.err
    assert {path: path.read_bytes() for path in halted_here.rglob("*") if path.is_file()} == before
    assert not list(workplace.glob("runs/first-*"))


def test_a_fork_that_has_saved_nothing_yet_needs_the_other_run_no_more(
    cli: Cli, halted: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("gpt2.recipes.resume.go", lambda *arguments: None)
        assert cli("train", "--fork", "first", "--train.steps", "4").code == 0
    for old in (halted / "checkpoints").iterdir():
        shutil.rmtree(old)  # as a run does that goes on
    answer = cli("train", "--resume", "first-fork")
    assert answer.code == 0, answer.err
    assert [record.step for record in read_metrics(workplace / "runs/first-fork/metrics.jsonl")] == [21, 22, 23, 24]


def test_a_fork_of_a_complete_run_asks_how_long(cli: Cli, halted: Path, workplace: Path) -> None:
    assert cli("train", "--resume", "first").code == 0
    answer = cli("train", "--fork", "first")
    assert answer.code == 2
    assert "has made its 40 steps" in answer.err and "--train.steps" in answer.err
    assert not list(workplace.glob("runs/first-*"))


def test_a_fork_keeps_to_its_minutes_and_knows_its_own_settings(
    cli: Cli, halted_here: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2.recipes.resume._steps_in", lambda folder, seconds: 10**6)
    assert cli("train", "--fork", "first", "--train.minutes", "0.05", "--run", "timed").code == 0
    record = read_json(workplace / "runs/timed/run.json")
    assert record["settings"]["train"]["steps"] < 10**5
    assert record["settings"]["train"]["minutes"] == 0.05
    assert record["asked"]["train"] == {"minutes": "0.05"} and record["asked"]["fork"].endswith("step-00000020")
    assert record["settings"]["sources"] == [str(workplace / "notes.txt")]


def test_what_is_automatic_stays_as_it_was_chosen_in_a_fork(cli: Cli, halted: Path, workplace: Path) -> None:
    before = read_json(halted / "run.json")["settings"]
    options = ("--optim.name", "auto", "--train.precision", "auto", "--optim.matrix-precision", "auto")
    assert cli("train", "--fork", "first", "--train.steps", "2", "--run", "second", *options).code == 0
    settings = read_json(workplace / "runs/second/run.json")["settings"]
    assert settings["optim"] == before["optim"]
    assert settings["train"]["precision"] == before["train"]["precision"]


def test_minutes_where_the_metrics_are_gone(cli: Cli, halted: Path) -> None:
    (halted / "metrics.jsonl").unlink()
    assert cli("train", "--finish", "first", "--train.minutes", "0.03").code == 0


def test_a_run_goes_on_on_another_device(cli: Cli, halted: Path) -> None:
    record = read_json(halted / "run.json")
    record["settings"]["train"] |= {"device": "cuda:7", "minutes": 5.0}
    write_json(halted / "run.json", record)
    answer = cli("train", "--resume", "first")
    assert answer.code == 2
    assert "cuda:7" in answer.err and "--train.device" in answer.err
    answer = cli("train", "--resume", "first", "--train.device", "auto")
    assert answer.code == 0, answer.err
    assert "to step 40 as planned" in answer.err
    assert read_json(halted / "last/run.json")["settings"]["train"]["device"] == "cpu"


def test_a_damaged_record_says_where_a_copy_is(cli: Cli, halted: Path) -> None:
    for content in ("{", "{}"):
        (halted / "run.json").write_text(content)
        answer = cli("train", "--resume", "first")
        assert answer.code == 2
        assert f"cp {Path('runs/first')}/last/run.json" in answer.err


@pytest.mark.parametrize("options", [("notes.txt", "--auto-resume"), ("notes.txt",), ("--resume", "first")])
def test_what_is_left_of_a_run_is_not_written_over(cli: Cli, halted_here: Path, options: tuple[str, ...]) -> None:
    record = (halted_here / "run.json").read_bytes()
    (halted_here / "run.json").unlink()
    before = {path: path.read_bytes() for path in halted_here.rglob("*") if path.is_file()}
    own = () if "--resume" in options else ("--run", "first", *OPTIONS)
    answer = cli("train", *options, *own)
    assert answer.code == 2
    assert "without its run.json" in answer.err
    copy = answer.err.split(": cp ")[1].split()
    assert copy[1] == "runs/first/run.json"
    assert Path(copy[0]).read_bytes() == record
    assert {path: path.read_bytes() for path in before} == before
    shutil.rmtree(halted_here / "checkpoints")
    answer = cli("train", "notes.txt", "--run", "first", *OPTIONS)
    assert answer.code == 2
    assert "move the folder away" in answer.err


def test_a_run_whose_metrics_are_removed_ends_without_a_traceback(
    cli: Cli, halted_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = Trainer.train_step

    def step_and_remove(self: Trainer) -> object:
        (halted_here / "metrics.jsonl").unlink(missing_ok=True)
        return train_step(self)

    monkeypatch.setattr(Trainer, "train_step", step_and_remove)
    answer = cli("train", "--resume", "first")
    assert answer.code == 0, answer.err
    assert "best validation loss" in answer.err


@pytest.mark.parametrize("damage", ["tokenizer.json", "train-00000.bin", "MANIFEST.json", "validation-00000.bin"])
def test_prepared_data_that_is_damaged_is_made_again_as_it_is_told(cli: Cli, halted_here: Path, damage: str) -> None:
    (path,) = halted_here.parent.glob(f".prepared/*/{damage}")
    path.write_bytes(path.read_bytes()[:-30])
    answer = cli("train", "--resume", "first")
    assert answer.code == 2
    assert f"Remove {path.parent.relative_to(halted_here.parents[1])}, and repeat the command" in answer.err
    shutil.rmtree(path.parent)
    assert cli("train", "--resume", "first").code == 0


def test_auto_resume_may_be_repeated(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command again and again: begins, goes on after each stop, and then has nothing left to do."""
    train_step = Trainer.train_step

    def step_and_stop(self: Trainer) -> object:
        record = train_step(self)
        self.stop_wished = self.step % 15 == 0
        return record

    (workplace / "notes.txt").write_text(make_text(600))
    monkeypatch.setattr(Trainer, "train_step", step_and_stop)
    command = ("train", "notes.txt", "--auto-resume", *OPTIONS)
    assert [cli(*command).code for _ in range(4)] == [143, 143, 0, 0]
    assert [json.loads(line)["step"] for line in (workplace / "runs/notes/metrics.jsonl").read_text().splitlines()] == [
        *range(1, 41)
    ]
    assert [path.name for path in (workplace / "runs").glob("notes*")] == ["notes"]
    for options, what in (
        (("--optim.lr", "0.5"), "optim.lr not given then, 0.5 now."),
        (("--train.steps", "41"), "train.steps 40 then, 41 now."),
    ):
        changed = cli(*command, *options)
        assert changed.code == 2
        assert f"other settings than these: {what}" in changed.err


def test_auto_resume_is_not_stopped_by_another_release(cli: Cli, halted_here: Path) -> None:
    """One that has a setting more, and one less, than that which began the run."""
    record = read_json(halted_here / "run.json")
    del record["asked"]["train"]["patience"]
    record["asked"]["train"]["forgotten"] = 7
    write_json(halted_here / "run.json", record)
    command = ("train", "notes.txt", "--run", "first", "--auto-resume", *OPTIONS)
    assert "other settings" in cli(*command, "--train.patience", "3").err
    answer = cli(*command)
    assert answer.code == 0, answer.err
    assert "Going on from" in answer.err


def test_auto_resume_where_its_files_are_damaged(cli: Cli, halted_here: Path) -> None:
    command = ("train", "notes.txt", "--run", "first", "--auto-resume", *OPTIONS)
    whole = (halted_here / "run.json").read_text()
    for content in ("{", "[]", "{}"):
        (halted_here / "run.json").write_text(content)
        answer = cli(*command)
        assert answer.code == 2
        assert f"cp {Path('runs/first')}/last/run.json" in answer.err
    (halted_here / "run.json").write_text(whole)
    (halted_here / "run_state.json").write_text('{"status": "comp')
    assert "--resume runs/first" in cli("train", "notes.txt", "--run", "first", *OPTIONS).err
    answer = cli(*command)
    assert answer.code == 0, answer.err
    assert read_json(halted_here / "run_state.json") == {"status": "completed", "step": 40}


def test_a_fork_is_not_repeated_from_nothing(cli: Cli, halted: Path) -> None:
    assert cli("train", "--fork", "first", "--train.steps", "2", "--run", "second").code == 0
    answer = cli("train", "--config", "runs/second/run.json")
    assert answer.code == 2
    assert "--fork" in answer.err
    (halted.parent / "notes.json").write_text("[1]")
    assert "no run.json" in cli("train", "--config", "runs/notes.json").err


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), MemoryError(), KeyError("x")])
@pytest.mark.parametrize("where", ["gpt2.recipes.run.snapshot", "gpt2.training.checkpoint.save"])
def test_a_save_that_fails_is_told_and_training_goes_on(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    """Whatever it is: while the state is copied, or in the background."""
    before, calls = resolve_name(where), 0

    def fails_once(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return before(*arguments)

    monkeypatch.setattr(where, fails_once)
    (workplace / "notes.txt").write_text(make_text(600))
    answer = cli("train", "notes.txt", "--run", "first", *OPTIONS)
    assert answer.code == 0, answer.err
    reason = "No space left" if isinstance(error, OSError) else type(error).__name__
    assert f"The checkpoint of step 20 could not be saved. {reason}" in answer.err
    assert "Training goes on; earlier checkpoints are intact." in answer.err
    there = [path.name for path in (workplace / "runs/first/checkpoints").iterdir()]
    assert sorted(there) == ["step-00000010", "step-00000030", "step-00000040"]


@pytest.mark.parametrize("first", [True, False])
def test_a_stop_that_cannot_be_saved_says_where_it_stands(
    cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if not first:
        stop_halfway(workplace)
    else:
        (workplace / "notes.txt").write_text(make_text(600))
    train_step = Trainer.train_step

    def step_and_stop(self: Trainer) -> object:
        record = train_step(self)
        self.stop_wished = True
        return record

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_stop)
        patch.setattr(checkpoint, "save", refuse)
        answer = cli(
            *(("train", "--resume", "first") if not first else ("train", "notes.txt", "--run", "first", *OPTIONS))
        )
    assert answer.code == 143
    at = 1 if first else 21
    there = "There is no checkpoint yet." if first else "The checkpoint of step 20 is intact."
    assert f"Stopped at step {at}, but not saved. No space left" in answer.err and there in answer.err
    assert "and saved" not in answer.err and "Training goes on" not in answer.err
    assert "gpt2 train --resume runs/first" in answer.err
    state = read_json(workplace / "runs/first/run_state.json")
    assert state == {"status": "preempted", "step": 0 if first else 20}
    assert cli("train", "--resume", "first").code == 0


def test_a_step_waits_for_the_copy_only(cli: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All else of a save is done beside the training: what lies between two steps is the copy of what they change."""
    done: list[tuple[str, bool]] = []

    def note(name: str) -> None:
        before = resolve_name(name)

        def noted(*arguments: object) -> object:
            done.append((name.rpartition(".")[2], threading.current_thread() is threading.main_thread()))
            return before(*arguments)

        monkeypatch.setattr(name, noted)

    note("gpt2.recipes.run.snapshot")
    note("gpt2.recipes.snapshot.export_tensors")
    note("gpt2.tokenizer.char.CharTokenizer.to_files")
    (workplace / "notes.txt").write_text(make_text(600))
    assert cli("train", "notes.txt", "--run", "first", *OPTIONS).code == 0
    beside = [("snapshot", True), ("export_tensors", False)]
    first = done.index(("snapshot", True))
    assert done[first:] == [*3 * beside, ("snapshot", True), ("export_tensors", True)], "the last is waited for"
