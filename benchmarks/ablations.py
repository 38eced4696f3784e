"""What the defaults rest on: one setting changed at a time, several seeds each, on a text read a few or many times.

Every run is a whole `gpt2 train`, 2 layers of width 64, context 128, 16 sequences a step, Muon, on an eighth of the
prose in Python's own manuals (22,281 tokens), with one thread. What each reached goes into ablations.jsonl, beside this
file; runs that stand there already are not made again. The tables in docs/experiments.md are what it prints.

    python benchmarks/ablations.py [--seeds 3]
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from gpt2.corpus.python_docs import text_documents

RESULTS = Path(__file__).with_name("ablations.jsonl")
PART = 8
STEPS_OF_AN_EPOCH = 11
"""16 × 128 tokens each."""


class Setting(NamedTuple):
    """One row of a table: what is tried, for so many passes over the text."""

    table: str
    name: str
    epochs: int
    options: tuple[str, ...]


def settings() -> list[Setting]:
    """All that is tried."""
    made = []
    for epochs in (6, 24, 72):
        for decay in ("0", "0.1", "0.3", "1"):
            made.append(Setting("weight decay", decay, epochs, ("--optim.weight-decay", decay)))
        for dropout in ("0", "0.1", "0.2", "0.3"):
            made.append(Setting("dropout", dropout, epochs, ("--model.dropout", dropout)))
    shapes = {
        "linear": ("linear",),
        "cosine": ("cosine",),
        "wsd, cooldown 0.4": ("wsd",),
        "wsd, cooldown 0.2": ("wsd", "--schedule.cooldown", "0.2"),
        "linear to a tenth": ("linear", "--schedule.final", "0.1"),
        "constant": ("constant",),
    }
    for epochs in (6, 24):
        made += [Setting("schedule", name, epochs, ("--schedule.name", *shape)) for name, shape in shapes.items()]
        made += [Setting("warm-up", w, epochs, ("--schedule.warmup", w)) for w in ("0", "0.02", "0.05", "0.1", "0.2")]
        for batch in ("4", "8", "16", "32"):
            steps = epochs * STEPS_OF_AN_EPOCH * 16 // int(batch)
            made.append(
                Setting("sequences a step", batch, epochs, ("--train.batch-size", batch, "--train.steps", str(steps)))
            )
    return made


def train(work: Path, setting: Setting, seed: int) -> dict[str, object]:
    """A run of a setting, its lowest and its last validation loss."""
    run = f"{setting.table}-{setting.name}-{setting.epochs}-{seed}".replace(" ", "_").replace(",", "")
    steps = setting.epochs * STEPS_OF_AN_EPOCH
    options = {
        "--data.columns": "text", "--run": run, "--model.n-layer": "2", "--model.n-head": "2", "--model.n-embd": "64",
        "--model.context-length": "128", "--model.dropout": "0.1", "--train.batch-size": "16", "--optim.name": "muon",
        "--train.steps": str(steps), "--train.eval-every": str(max(5, steps // 12)), "--train.sample-tokens": "0",
        "--train.seed": str(seed), "--schedule.name": "linear", "--train.keep": "1",
    }  # fmt: skip
    options |= dict(zip(setting.options[::2], setting.options[1::2], strict=True))
    if "--train.steps" in setting.options:
        options["--train.eval-every"] = str(max(5, int(options["--train.steps"]) // 12))
    command = [sys.executable, "-m", "gpt2", "train", "part.csv", *(word for pair in options.items() for word in pair)]
    done = subprocess.run(
        command, cwd=work, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    lines = (work / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [loss for line in lines if (loss := json.loads(line).get("val_loss")) is not None]
    return {**setting._asdict(), "seed": seed, "best": min(losses), "last": losses[-1]}


def tables(entries: list[dict[str, object]]) -> list[str]:
    """Mean and spread of the lowest validation loss: a row a setting, a column a number of passes."""
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for entry in entries:
        found[str(entry["table"]), str(entry["name"]), int(str(entry["epochs"]))].append(float(str(entry["best"])))
    lines = []
    for table in dict.fromkeys(key[0] for key in found):
        epochs = sorted({key[2] for key in found if key[0] == table})
        lines += ["", f"| {table} | " + " | ".join(f"{count} passes" for count in epochs) + " |"]
        lines.append("|---" * (len(epochs) + 1) + "|")
        for name in dict.fromkeys(key[1] for key in found if key[0] == table):
            cells = [_cell(found.get((table, name, count), [])) for count in epochs]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _cell(losses: list[float]) -> str:
    if not losses:
        return ""
    spread = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    return f"{statistics.mean(losses):.3f}{spread} ({len(losses)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    known = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    made = {(entry["table"], entry["name"], entry["epochs"], entry["seed"]) for entry in known}
    with tempfile.TemporaryDirectory() as folder, RESULTS.open("a", encoding="utf-8") as file:
        work = Path(folder)
        with (work / "part.csv").open("w", newline="", encoding="utf-8") as part:
            csv.writer(part).writerows([("name", "text"), *text_documents()[::PART]])
        for seed in range(1, arguments.seeds + 1):
            for setting in sorted(settings(), key=lambda setting: setting.epochs):
                if (setting.table, setting.name, setting.epochs, seed) not in made:
                    known.append(train(work, setting, seed))
                    file.write(json.dumps(known[-1]) + "\n")
                    file.flush()
    print("\n".join(tables(known)))


if __name__ == "__main__":
    main()
