"""Whether the mean of the weights at the end of a run is better than its last ones: a trial in docs/experiments.md.

Runs of `gpt2 train`, with one thread, on the prose in Python's own manuals, keep a checkpoint every 2 % of their steps.
The loss of the last one stands beside that of the mean of the last so many.

    python benchmarks/averaging.py     # about 40 minutes on one core
"""

import json
import statistics
import tempfile
from collections import defaultdict
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scaling import CONTEXT, trained, write_prose

from gpt2.corpus.shards import TokenShards
from gpt2.model.gpt2 import GPT2
from gpt2.weights.huggingface import load_model

MEANS = (1, 3, 5, 10, 20, 30)
SCHEDULES = {
    "linear to 0": ["--schedule.name", "linear"],
    "constant": ["--schedule.name", "wsd", "--schedule.cooldown", "0"],
    "wsd cooldown 0.2": ["--schedule.name", "wsd", "--schedule.cooldown", "0.2"],
}


class Case(NamedTuple):
    """A text, one part in so many of it, and who reads it how often."""

    part: int
    shape: str
    steps: int
    dropout: float
    rates: tuple[float, ...]
    """Of Muon."""
    seeds: tuple[int, ...]
    words: str


CASES = (
    Case(1, "2x64", 162, 0.0, (0.03, 0.05, 0.1), (1, 2), "2x64, 2 passes"),
    Case(1, "2x64", 649, 0.0, (0.03, 0.05), (1, 2), "2x64, 8 passes"),
    Case(1, "3x128", 649, 0.0, (0.03,), (1,), "3x128, 8 passes"),
    Case(8, "2x64", 174, 0.1, (0.03,), (1, 2), "2x64, 16 passes of an eighth, dropout 0.1"),
)


@torch.no_grad()
def loss(model: GPT2, tokens: np.ndarray) -> float:
    """Nats a token, in windows side by side."""
    model.eval()
    count = (len(tokens) - 1) // CONTEXT
    rows = torch.from_numpy(tokens[: count * CONTEXT + 1].astype(np.int64))
    inputs, targets = rows[:-1].view(count, CONTEXT), rows[1:].view(count, CONTEXT)
    sums = [
        F.cross_entropy(model(some).flatten(0, 1), aim.flatten(), reduction="sum")
        for some, aim in zip(inputs.split(16), targets.split(16), strict=True)
    ]
    return float(torch.stack(sums).sum()) / (count * CONTEXT)


def losses_of_means(work: Path, case: Case, schedule: str, rate: float, seed: int) -> dict[int, float]:
    """Train once: how many of the last checkpoints → the loss of their mean."""
    options = [
        "--model.dropout", str(case.dropout), "--train.batch-size", "16", "--train.steps", str(case.steps),
        "--train.seed", str(seed), "--train.eval-every", str(case.steps // 50), "--train.keep", "100",
        "--optim.matrix-lr", str(rate), "--optim.weight-decay", "0.1", *SCHEDULES[schedule],
    ]  # fmt: skip
    run = f"{case.part}-{case.shape}-{case.steps}-{schedule}-{rate}-{seed}".replace(" ", "-")
    folder, _, _ = trained(work, run, "prose", case.part, None, case.shape, options)
    prepared = work / "runs/.prepared" / json.loads((folder / "run.json").read_text())["data"]
    shards = TokenShards(prepared, "validation")
    tokens = np.asarray(shards.read(0, len(shards)))
    newest = sorted((folder / "checkpoints").glob("step-*"))[::-1]
    models = [dict(load_model(path, torch.device("cpu")).named_parameters()) for path in newest[: max(MEANS)]]
    found: dict[int, float] = {}
    for count in MEANS:
        mean = load_model(newest[0], torch.device("cpu"))
        for name, parameter in mean.named_parameters():
            parameter.data = torch.stack([model[name] for model in models[:count]]).mean(0)
        found[count] = loss(mean, tokens)
    return found


def main() -> None:
    print(
        "| model, text | schedule | rate | "
        + " | ".join("the last" if k == 1 else f"mean of {k}" for k in MEANS)
        + " |"
    )
    print("|" + "---|" * (3 + len(MEANS)))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_prose(work)
        for case, schedule, rate in ((*both, rate) for both in product(CASES, SCHEDULES) for rate in both[0].rates):
            found: dict[int, list[float]] = defaultdict(list)
            for seed in case.seeds:
                for count, reached in losses_of_means(work, case, schedule, rate, seed).items():
                    found[count].append(reached)
            cells = " | ".join(f"{statistics.mean(found[k]):.4f}" for k in MEANS)
            print(f"| {case.words} | {schedule} | {rate:g} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
