"""Whether the mean of the weights at the end of a run is better than its last ones: a trial in docs/experiments.md.

Runs of `gpt2 train`, with one thread, on the prose in Python's own manuals, keep a checkpoint every 2 % of their steps.
The loss of the last one stands beside that of the mean of the last so many.

    python benchmarks/averaging.py     # about 10 minutes on one core
"""

import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scaling import CONTEXT, trained, write_prose

from gpt2.corpus.shards import TokenShards
from gpt2.model.gpt2 import GPT2
from gpt2.weights.huggingface import load_model

STEPS = 649  # 8 passes
EVERY = STEPS // 50
MEANS = (1, 3, 5, 10, 20)
SCHEDULES = {
    "linear to 0": ["--schedule.name", "linear"],
    "constant": ["--schedule.name", "wsd", "--schedule.cooldown", "0"],
    "wsd, cooldown 0.2": ["--schedule.name", "wsd", "--schedule.cooldown", "0.2"],
}


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


def losses_of_means(work: Path, name: str, options: list[str], seed: int) -> dict[int, float]:
    """Train once: how many of the last checkpoints → the loss of their mean."""
    more = [
        "--model.dropout", "0", "--train.batch-size", "16", "--train.steps", str(STEPS), "--train.seed", str(seed),
        "--train.eval-every", str(EVERY), "--train.keep", "100", "--optim.matrix-lr", "0.03",
        "--optim.weight-decay", "0.1",
    ]  # fmt: skip
    folder, _, _ = trained(work, f"{name}-{seed}".replace(" ", "-"), "prose", 1, None, "2x64", [*more, *options])
    prepared = work / "runs/.prepared" / json.loads((folder / "run.json").read_text())["data"]
    shards = TokenShards(prepared, "validation")
    tokens = np.asarray(shards.read(0, len(shards)))
    newest = sorted((folder / "checkpoints").glob("step-*"))[::-1]
    models = [load_model(path, torch.device("cpu")) for path in newest[: max(MEANS)]]
    found: dict[int, float] = {}
    for count in MEANS:
        mean = load_model(newest[0], torch.device("cpu"))
        for name_of, parameter in mean.named_parameters():
            parameter.data = torch.stack([dict(one.named_parameters())[name_of] for one in models[:count]]).mean(0)
        found[count] = loss(mean, tokens)
    return found


def main() -> None:
    print("| schedule | " + " | ".join("the last" if k == 1 else f"mean of {k}" for k in MEANS) + " |")
    print("|" + "---|" * (1 + len(MEANS)))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_prose(work)
        for name, options in SCHEDULES.items():
            found: dict[int, list[float]] = defaultdict(list)
            for seed in (1, 2):
                for count, reached in losses_of_means(work, name, options, seed).items():
                    found[count].append(reached)
            print(f"| {name} | " + " | ".join(f"{statistics.mean(found[k]):.4f}" for k in MEANS) + " |", flush=True)


if __name__ == "__main__":
    main()
