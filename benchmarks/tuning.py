"""Tune the same weights on the same conversations in the same order, here and with transformers' own Trainer.

    python benchmarks/tuning.py RUN FILE [--steps 60] [--batch 16] [--rate 5e-4]

RUN is any base that `gpt2 tune` takes, FILE its conversations. Both sides get fp32, AdamW at a constant rate without
weight decay, clipping at 1, no dropout, no replayed text. transformers reads our batches, row for row, padded alike and
with its attention mask. Needs `pip install transformers accelerate`. Prints the held-out loss of both, and the time of
a step: its forward pass, backward pass and update (ours includes reading the next batch). Seconds are CPU time of one
thread, which other programs on the machine do not lengthen.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from gpt2.cli import main
from gpt2.config.schema import Settings
from gpt2.corpus.prepare import open_prepared
from gpt2.data.dataset import IGNORED
from gpt2.distributed import World
from gpt2.evaluation.loss import mean_loss
from gpt2.files import read_json
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
        steps = [record.tokens for record in read_metrics(folder / "metrics.jsonl")]
        sizes = [b - a for a, b in zip([0, *steps], steps, strict=False)]
        speeds = [record.tokens_per_second for record in read_metrics(folder / "metrics.jsonl")]
        mine = [size / speed for size, speed in zip(sizes, speeds, strict=True)]
        result = {
            "steps": given.steps,
            "rows a step": given.batch,
            "before": round(held_out(task.model(None)), 4),
            "held-out loss, gpt2 tune": round(held_out(load_model(folder / "last")), 4),
            "held-out loss, transformers": round(held_out(again), 4),
            "seconds a step, gpt2 tune": round(statistics.median(mine[WARM_UP:]), 4),
            "seconds a step, transformers": round(statistics.median(seconds[WARM_UP:]), 4),
        }
        result["ratio"] = round(result["seconds a step, gpt2 tune"] / result["seconds a step, transformers"], 3)
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    compare()
