"""Tune the same weights on the same conversations in the same order, here and with transformers' own Trainer.

    python benchmarks/tuning.py RUN FILE [--steps 60] [--batch 16] [--rate 5e-4]

RUN is any base that `gpt2 tune` takes, FILE its conversations. Both sides get fp32, AdamW at a constant rate without
weight decay, clipping at 1, no dropout, no replayed text. transformers reads our batches, row for row, padded alike and
with its attention mask. Needs `pip install transformers accelerate`. Into RESULTS.md go the held-out loss of both, and
the time of a step: its forward pass, backward pass and update (ours includes reading the next batch). Seconds are CPU
time of one thread, which other programs on the machine do not lengthen.
"""

import argparse
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from results import machine, write_section
from torch import Tensor

from gpt2.cli import main
from gpt2.config.schema import Settings
from gpt2.corpus.prepare import open_prepared
from gpt2.data.dataset import IGNORED
from gpt2.distributed import World
from gpt2.evaluation.loss import mean_loss
from gpt2.files import read_json
from gpt2.model.cost import parameters
from gpt2.recipes.tuning import Tuning
from gpt2.runtime import autocast
from gpt2.training.loss import NextTokenLoss
from gpt2.training.metrics import read_metrics
from gpt2.weights.huggingface import export_tensors, hf_config, load_model

WARM_UP = 5
"""Steps that are not timed."""


def ours(base: str, file: str, steps: int, batch: int, rate: float) -> None:
    name = ["--run", "ours", "--replay", "0", "--dropout", "0", "--optim.weight-decay", "0", "--optim.name", "adamw"]
    rates = ["--optim.lr", str(rate), "--schedule.name", "constant", "--schedule.warmup", "0", "--train.patience", "99"]
    length = ["--train.steps", str(steps), "--train.eval-every", str(steps), "--train.batch-size", str(batch)]
    with mock.patch("time.perf_counter", time.process_time):
        main(["tune", base, file, *name, *rates, *length, "--train.sample-tokens", "0", "--train.precision", "fp32"])


def theirs(task: Tuning, steps: int, folder: Path) -> tuple[Any, list[float]]:
    """transformers' model after the same steps, and the seconds of each."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    start = task.model(None)
    model = GPT2LMHeadModel(GPT2Config(**hf_config(start.config, 0)))
    model.load_state_dict(export_tensors(start.state_dict()), strict=False)
    model.tie_weights()
    loader, rows = task.loader(), []
    for _ in range(steps):
        rows.append(_as_theirs(*loader.next_batch()))

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.process_time() - self.began)

    class InOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(rows, batch_size=None)  # type: ignore[arg-type]

    settings = task.settings
    arguments = TrainingArguments(
        output_dir=str(folder / "theirs"),
        max_steps=steps,
        learning_rate=settings.optim.lr or 0.0,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=settings.optim.beta1,
        adam_beta2=settings.optim.beta2 or 0.0,
        adam_epsilon=settings.optim.eps,
        max_grad_norm=settings.train.grad_clip,
        per_device_train_batch_size=settings.train.batch_size,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    clock = Clock()
    InOrder(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()  # type: ignore[arg-type]
    return model, clock.seconds


def _as_theirs(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """A batch with labels in place of targets: theirs are moved by one inside the model."""
    last = torch.where(targets[:, -1:] == IGNORED, 0, targets[:, -1:])
    ids = torch.cat([inputs, last], 1)
    labels = torch.cat([torch.full_like(targets[:, :1], IGNORED), targets], 1)
    seen = torch.cat([torch.ones_like(inputs[:, :1]), inputs[:, 1:].ne(0) | targets[:, :-1].ne(IGNORED)], 1)
    filled = seen.long().flip(1).cummax(1).values.flip(1)  # everything up to the last place that is not filling
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.cat([filled, filled[:, -1:]], 1)}


def compare() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    base = os.path.abspath(given.base) if os.path.exists(given.base) else given.base
    file = os.path.abspath(given.file)
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        folder = Path("runs/ours")
        ours(base, file, given.steps, given.batch, given.rate)
        record = read_json(folder / "run.json")
        settings = Settings.model_validate(record["settings"])
        task = Tuning(folder, settings, open_prepared(Path("runs/.prepared") / record["data"]), World())
        model, seconds = theirs(task, given.steps, Path(place))

        def held_out(weights: Any) -> float:
            objective = NextTokenLoss(weights)
            return mean_loss(objective, task.validation(16), lambda: autocast("fp32", torch.device("cpu")))

        model.save_pretrained(Path(place) / "saved")
        again = load_model(Path(place) / "saved")
        records = read_metrics(folder / "metrics.jsonl")
        read = [0, *(record.tokens for record in records)]
        mine = [(b - a) / r.tokens_per_second for a, b, r in zip(read, read[1:], records, strict=False)]
        before, losses = held_out(task.model(None)), [held_out(load_model(folder / "last")), held_out(again)]
        taken = [statistics.median(times[WARM_UP:]) for times in (mine, seconds)]
        sizes = parameters(task.model(None).config)
    write_section(
        "tuning",
        "Tuning, beside transformers' Trainer",
        [
            f"`python benchmarks/tuning.py RUN {Path(file).name}` on {machine()}. A base of {sizes:,} parameters,",
            f"{given.steps} steps of {given.batch} conversations, fp32, the same weights and rows on both sides.",
            "Seconds are CPU time of one thread, the median of the steps.",
            "",
            "| | held-out loss of answers, nats a token | seconds a step |",
            "|---|---|---|",
            f"| before | {before:.4f} | |",
            f"| `gpt2 tune` | {losses[0]:.4f} | {taken[0]:.4f} |",
            f"| transformers {version('transformers')} | {losses[1]:.4f} | {taken[1]:.4f} |",
            "",
            f"Time per step, ours to theirs: **{taken[0] / taken[1]:.2f}**.",
        ],
    )


if __name__ == "__main__":
    compare()
