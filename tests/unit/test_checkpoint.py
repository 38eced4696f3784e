import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from gpt2.errors import CheckpointError, RunError
from gpt2.files import write_json
from gpt2.training import checkpoint


def writer(value: str) -> Callable[[checkpoint.NewFolder], None]:
    def write(folder: checkpoint.NewFolder) -> None:
        folder.text("config.json", "{}")
        folder.text("model.safetensors", value)
        folder.text("run.json", json.dumps({"value": value}))

    return write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "example"
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {})
    for step, loss in ((10, 4.0), (20, 2.0), (30, 3.0), (40, None)):
        checkpoint.save(folder, step, writer(str(step)), 0, loss, keep=2)
    return folder


def test_the_newest_and_the_best_are_kept(run: Path) -> None:
    assert [path.name for path in checkpoint.list_checkpoints(run)] == [
        "step-00000020",
        "step-00000030",
        "step-00000040",
    ]
    assert (run / "best" / "model.safetensors").read_text() == "20"
    assert (run / "last" / "model.safetensors").read_text() == "40"


def test_a_best_that_could_not_be_saved_is_not_the_best(run: Path) -> None:
    """Else `best` would lead to a worse one for good, once the disk has room again."""

    def refuse(folder: checkpoint.NewFolder) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.save(run, 50, refuse, 0, 0.5, keep=2)
    assert checkpoint.validation_loss(run / "best") == 2.0
    checkpoint.save(run, 60, writer("60"), 0, 1.0, keep=2)
    assert (run / "best" / "model.safetensors").read_text() == "60"


def test_a_run_is_found_by_name_by_path_and_as_the_newest(run: Path) -> None:
    root = run.parent
    for name in ("example", str(run), None):
        assert checkpoint.open_checkpoint(name, "last", root).step == 40
    opened = checkpoint.open_checkpoint(str(run), "step-00000030", root)
    assert (opened.step, opened.settings, opened.run_folder) == (30, {"value": "30"}, run)
    assert checkpoint.open_checkpoint(str(run / "best"), root=root).step == 20


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest", "broken manifest", "empty manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    run: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run / "checkpoints" / "step-00000040"
    path = folder / "model.safetensors"
    match damage:
        case "flip":
            path.write_text("41")
        case "truncate":
            path.write_text("4")
        case "remove":
            path.unlink()
        case "no manifest":
            (folder / "MANIFEST.json").unlink()
        case "broken manifest":
            (folder / "MANIFEST.json").write_text("{")
        case "empty manifest":
            (folder / "MANIFEST.json").write_text("{}")
    assert checkpoint.newest_valid(run).name == "step-00000030"
    assert checkpoint.open_checkpoint(str(run), "last").step == 30
    said = " ".join(capsys.readouterr().err.split())
    assert ("step-00000040" in said) or damage == "no manifest"
    if damage in ("flip", "truncate", "remove"):
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            checkpoint.verify(folder)


def test_without_any_whole_checkpoint_it_stops(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in checkpoint.list_checkpoints(run):
        (folder / "config.json").write_text("altered")
    with pytest.raises(CheckpointError, match="No checkpoint"):
        checkpoint.open_checkpoint(str(run))
    said = capsys.readouterr().err
    assert said.count("is damaged") == 3
    assert "instead" not in said, "what is not there is not promised"


def test_without_manifests_no_checkpoint_is_whole_and_none_is_gone(run: Path) -> None:
    for folder in checkpoint.list_checkpoints(run):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="No checkpoint"):
        checkpoint.open_checkpoint(str(run))


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": 5}', '{"files": {"config.json": {"size": "x"}}}'])
def test_a_manifest_that_lists_nothing_is_damaged(run: Path, manifest: str) -> None:
    folder = checkpoint.list_checkpoints(run)[-1]
    (folder / "MANIFEST.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"MANIFEST\.json is damaged: it does not list files"):
        checkpoint.open_checkpoint(str(folder))


def test_checkpoints_that_are_gone_are_not_waited_for(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="are gone") as error:
        checkpoint.open_checkpoint(str(run))
    assert "Put" in error.value.fix
    (run / "last").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        checkpoint.open_checkpoint(str(run))


def test_a_slip_of_the_fingers_gets_the_nearest_run_and_many_runs_are_counted(run: Path) -> None:
    with pytest.raises(RunError) as error:
        checkpoint.find_run("exampel", run.parent)
    assert error.value.fix == f"Did you mean {run}?"
    for number in range(16):
        write_json(run.parent / f"r{number}" / "run.json", {})
    with pytest.raises(RunError) as error:
        checkpoint.find_run("zzzzz", run.parent)
    assert error.value.fix.endswith(" and 7 more.")
    assert error.value.fix.count(str(run.parent)) == 10


def test_a_failed_save_leaves_everything_as_it_was(run: Path) -> None:
    def fails(folder: checkpoint.NewFolder) -> None:
        folder.text("half", "")
        raise OSError(28, "No space left on device")

    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(run, 50, fails, 0, True, keep=1)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
    checkpoint.verify(run / "best")


def test_a_checkpoint_too_large_for_the_disk_is_not_begun(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(folder: checkpoint.NewFolder) -> None:
        raise AssertionError("it was begun")

    with pytest.raises(OSError, match="needed"):
        checkpoint.save(run, 50, never, 2**80, True, keep=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_100_000))
    with pytest.raises(OSError, match=r"2\.1 MB free, 2\.4 MB needed"):
        checkpoint.require_room(run, 2_000_000)


def test_saving_a_step_again_replaces_it(run: Path) -> None:
    checkpoint.save(run, 40, writer("again"), 0, False, keep=2)
    assert (run / "last" / "model.safetensors").read_text() == "again"


@pytest.mark.parametrize(("run_name", "which"), [("absent", "best"), ("example", "step-00000077")])
def test_what_is_not_there_is_answered_with_what_is(run: Path, run_name: str, which: str) -> None:
    with pytest.raises(RunError) as error:
        checkpoint.open_checkpoint(run_name, which, run.parent)
    assert "example" in str(error.value)


def test_without_links_a_file_leads_to_the_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("links are not allowed")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    checkpoint.save(run, 50, writer("50"), 0, 0.5, keep=2)
    assert not (run / "best").is_symlink()
    assert checkpoint.open_checkpoint(str(run), "best").step == 50


def test_tensors_are_a_safetensors_file(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(3, 5).t(),  # not contiguous
        "half": torch.randn(7).bfloat16(),
        "step": torch.tensor(3.0),
        "count": torch.tensor([2**40]),
        "none": torch.empty(0, 4),
    }
    new = checkpoint.NewFolder(tmp_path)
    new.tensors("x.safetensors", tensors)
    new.complete()
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys()
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name], value), name
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, "transformers asks for it"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_reads_otherwise_than_it_was_written_is_no_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that alters a byte as it takes it: the hash is of what was handed over, and the old ones stay."""
    before = sorted(path.name for path in checkpoint.list_checkpoints(run))
    fsync = os.fsync

    def altering(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.name == "model.safetensors" and path.read_text() == "50":
            path.write_text("51")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", altering)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.save(run, 50, writer("50"), 0, 0.5, keep=1)
    assert sorted(path.name for path in checkpoint.list_checkpoints(run)) == before
    assert (run / "last" / "model.safetensors").read_text() == "40"


def test_a_checkpoint_that_lacks_something_does_not_count_among_those_kept(run: Path) -> None:
    (run / "checkpoints/step-00000040/model.safetensors").unlink()
    checkpoint.save(run, 50, writer("50"), 0, None, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(run)] == [20, 30, 40, 50]
    checkpoint.save(run, 60, writer("60"), 0, None, keep=2)
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(run)] == [20, 50, 60]
