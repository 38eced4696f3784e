"""The mean of the weights is what a run measures and saves; the weights themselves go on as without it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.behaviour.test_resume import OPTIONS, STEPS, lines
from tests.conftest import Answer, make_text

from gpt2.config.schema import ScheduleSettings
from gpt2.files import read_json
from gpt2.optim.schedule import mean_share

Cli = Callable[..., Answer]
PLAIN = tuple(option for option in OPTIONS if option not in ("--schedule.average", "0.4"))


def test_what_counts_of_the_past_grows_as_a_power_of_its_step() -> None:
    """With a share of 1/4 as the third power; so that the mean is a fifth of the run old, however long it is."""
    settings = ScheduleSettings(average=0.25)
    for steps in (100, 10_000):
        counts = np.zeros(steps)
        for step in range(1, steps + 1):
            share = mean_share(step, settings)
            counts *= 1 - share
            counts[step - 1] = share
        assert counts.sum() == pytest.approx(1)
        where = np.arange(1, steps + 1) / steps
        assert counts @ where == pytest.approx(0.8, abs=0.01)
        assert counts[steps // 2] / counts[-1] == pytest.approx(1 / 8, rel=0.1)


def test_a_fork_begins_its_mean_anew() -> None:
    settings = ScheduleSettings(average=0.25, begins=500)
    assert [mean_share(step, settings) for step in (500, 501, 504, 508)] == [1, 1, 1, 0.5]
    assert mean_share(7, ScheduleSettings(average=0)) == 0


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_saved_is_the_mean_and_the_weights_go_on_without_it(cli: Cli, workplace: Path, optimizer: str) -> None:
    (workplace / "notes.txt").write_text(make_text(400))
    options = (*OPTIONS, "--optim.name", optimizer, "--train.save-every", "1")
    assert cli("train", "notes.txt", "--run", "mean", *options).code == 0
    assert cli("train", "notes.txt", "--run", "plain", *options, "--schedule.average", "0").code == 0
    settings = ScheduleSettings(average=0.4)
    mean: dict[str, torch.Tensor] = {}
    for step in range(1, STEPS + 1):
        saved, plain = (workplace / f"runs/{run}/checkpoints/step-{step:08d}" for run in ("mean", "plain"))
        weights = load_file(plain / "model.safetensors")
        share = mean_share(step, settings)
        mean = {name: torch.lerp(mean[name], weight, share) if mean else weight for name, weight in weights.items()}
        kept = load_file(saved / "training_state.safetensors")
        for name, weight in load_file(saved / "model.safetensors").items():
            torch.testing.assert_close(weight, mean[name], rtol=1e-5, atol=1e-7)
        assert sum(name.endswith("/mean") for name in kept) >= 1
    assert not any(name.endswith("/mean") for name in load_file(plain / "training_state.safetensors"))
    train = [
        [line["train_loss"] for line in lines(workplace / "runs" / run, "metrics.jsonl")] for run in ("mean", "plain")
    ]
    assert train[0] == train[1]


def test_what_is_measured_is_what_is_saved(cli: Cli, workplace: Path) -> None:
    (workplace / "notes.txt").write_text(make_text(400))
    assert cli("train", "notes.txt", "--run", "mean", *OPTIONS).code == 0
    run = workplace / "runs/mean"
    measured = lines(run, "metrics.jsonl")[-1]["val_loss"]
    # A fork without a mean goes on from it, and keeps no other; with next to no rate it measures what it began with.
    assert cli("train", "--fork", "runs/mean", "--run", "still", "--train.steps", "1", "--schedule.average", "0",
               "--optim.lr", "1e-12", "--optim.matrix-lr", "1e-12").code == 0  # fmt: skip
    still = workplace / "runs/still"
    assert lines(still, "metrics.jsonl")[-1]["val_loss"] == pytest.approx(measured, abs=1e-5)
    assert not any(name.endswith("/mean") for name in load_file(still / "last/training_state.safetensors"))
    assert read_json(run / "run.json")["settings"]["schedule"]["average"] == 0.4
