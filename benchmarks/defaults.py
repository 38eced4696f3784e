"""Which settings a run should have that nobody gave: the experiments behind the defaults, in docs/experiments.md.

Each run is a whole `gpt2 train`, with one thread, on the prose in Python's own manuals, an eighth or a 32nd of it, or
on the characters of a text. What each reached goes into defaults.jsonl, beside this file; runs that stand there already
are not made again. At the end all tables are printed, as far as there are runs for them.

    python benchmarks/defaults.py [tinyshakespeare.txt] [--runs 6]     # two at a time; at most so many more of them
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from scaling import CONTEXT, trained, write_prose

RESULTS = Path(__file__).parent / "defaults.jsonl"
TOKENS = {("prose", 1): 166_114, ("prose", 8): 22_281, ("prose", 32): 4_776, ("shakespeare", 1): 1_003_854}
"""Of the training part, about."""
TOKENS_A_SECOND = {"2x64": 30_000, "3x128": 9_000, "4x192": 3_800, "6x256": 1_500}
START = 6
"""Seconds of a run that are no training."""


class Run(NamedTuple):
    """What differs from one run to the next. Nothing is left to a default, which may change; None: by the width."""

    text: str
    part: int
    shape: str
    epochs: float
    seed: int
    batch: int = 16
    optimizer: str = "muon"
    lr: float | None = None
    matrix_lr: float = 0.05
    momentum: float = 0.95
    schedule: str = "linear"
    """Its name, and behind it its cooldown, if it has one."""
    weight_decay: float = 0.1
    dropout: float = 0.1
    average: float = 0.0

    @property
    def seconds(self) -> float:
        """About how long it takes."""
        return START + self.epochs * TOKENS[self.text, self.part] / TOKENS_A_SECOND[self.shape]


class Question(NamedTuple):
    """A table: runs that differ in a few settings and in the seed, one row for all else."""

    title: str
    varied: tuple[str, ...]
    runs: list[Run]


def question(title: str, where: Iterable[Run], values: Iterable[dict[str, Any]], seeds: Iterable[int]) -> Question:
    values = list(values)
    runs = [base._replace(**value, seed=seed) for seed, base, value in product(seeds, where, values)]
    return Question(title, tuple(dict.fromkeys(name for value in values for name in value)), runs)


NEW = Run("prose", 1, "2x64", 2, 0, dropout=0.0)
"""Of fresh text, more or less: two passes, 162 steps."""
EIGHT = Run("prose", 1, "2x64", 8, 0)
SHORT = Run("prose", 8, "2x64", 8, 0)
SIXTEEN = Run("prose", 8, "2x64", 16, 0)
OFTEN = Run("prose", 8, "2x64", 32, 0)
LARGER = Run("prose", 8, "3x128", 8, 0)
TOO_OFTEN = Run("prose", 32, "3x128", 64, 0)
CHARACTERS = Run("shakespeare", 1, "2x64", 0.5, 0, dropout=0.0)


def questions() -> list[Question]:
    """The most decisive first."""
    schedules = [{"schedule": name} for name in ("cosine", "linear", "wsd 0.4", "wsd 0.7")]
    dropouts = [{"dropout": share} for share in (0.0, 0.1, 0.2, 0.3)]
    decays = [{"weight_decay": decay} for decay in (0.01, 0.1, 0.5, 1.5)]
    adamw = [{"optimizer": "adamw", "lr": rate} for rate in (1.05e-3, 2.1e-3, 4.2e-3, 8.4e-3)]
    optimizers = [{"optimizer": "muon"}, *adamw]
    rates = [{"matrix_lr": rate} for rate in (0.02, 0.03, 0.05)]
    means = [{"momentum": mean} for mean in (0.85, 0.9, 0.95)]
    pairs = ((0.1, 0.0), (0.1, 0.1), (0.5, 0.0), (0.5, 0.1), (0.5, 0.2))
    both = [{"weight_decay": decay, "dropout": share} for decay, share in pairs]
    fresh = EIGHT._replace(dropout=0.0)
    batches = [fresh._replace(batch=size) for size in (4, 16, 64)]
    means_of_weights = [
        {"schedule": "linear"},
        {"schedule": "linear", "average": 0.25},
        {"schedule": "wsd 0.2", "average": 0.25},
        {"schedule": "constant", "average": 0.25},
        {"schedule": "constant", "average": 0.1},
        {"schedule": "constant", "average": 0.5},
    ]
    wide = Run("prose", 1, "3x128", 8, 0, matrix_lr=0.03, dropout=0.0)
    long = [CHARACTERS._replace(epochs=4), CHARACTERS._replace(epochs=1, batch=4)]
    return [
        question("Schedule", (NEW,), schedules, (1, 2, 3)),
        question("AdamW's rate beside Muon", (NEW, fresh), [{"lr": rate} for rate in (None, 2.8e-2)], (1, 2)),
        question("Weight decay and dropout", (SIXTEEN, OFTEN), both, (1, 2)),
        question("Dropout", (NEW,), dropouts, (1,)),
        question("Dropout, often", (SHORT, OFTEN), dropouts, (1, 2)),
        question("Weight decay", (NEW,), decays, (1,)),
        question("Weight decay, often", (SHORT, OFTEN), decays, (1, 2)),
        question("Weight decay, more text", (fresh,), decays[1:3], (1,)),
        question("Schedule, often", (OFTEN,), schedules, (1, 2)),
        question("Schedule, few steps", (SHORT._replace(dropout=0.0), SIXTEEN), schedules[1:3], (1,)),
        question("Schedule, longer", (EIGHT,), schedules, (1, 2)),
        question("Schedule, characters", (CHARACTERS,), schedules, (1, 2)),
        question("Dropout, more text", (EIGHT,), dropouts[:3], (1,)),
        question("Dropout, larger model", (LARGER,), dropouts[:3], (1,)),
        question("Optimizer", (NEW,), optimizers, (1,)),
        question("Optimizer, longer", (fresh,), [optimizers[0], *adamw[1:3]], (1,)),
        question("Muon's rate", (NEW, fresh), rates, (1, 2)),
        question("Muon's rate by batch", batches, [{"matrix_lr": rate} for rate in (0.02, 0.05, 0.1)], (1, 2)),
        question("Muon's rate, many steps", long, rates, (1,)),
        question("Mean of the weights", (NEW, fresh), means_of_weights, (1, 2)),
        question("Mean of the weights, few passes", (CHARACTERS._replace(epochs=2),), means_of_weights[:4], (1,)),
        question("Mean of the weights, often", (SIXTEEN, OFTEN), means_of_weights[:4], (1,)),
        question("Mean of the weights, larger model", (wide,), means_of_weights[:4], (1,)),
        question("Momentum", (NEW, fresh), means, (1,)),
        question("Dropout, far too often", (TOO_OFTEN,), dropouts, (1,)),
        question("Weight decay, far too often", (TOO_OFTEN,), decays[:3], (1,)),
    ]


def train(work: Path, source: str | None, run: Run) -> dict[str, Any]:
    steps = max(1, round(run.epochs * TOKENS[run.text, run.part] / (run.batch * CONTEXT)))
    schedule, *cooldown = run.schedule.split()
    options = [
        "--model.dropout", str(run.dropout), "--train.batch-size", str(run.batch), "--train.steps", str(steps),
        "--train.eval-every", str(max(5, steps // 16)), "--train.seed", str(run.seed),
        "--optim.name", run.optimizer, "--optim.matrix-lr", str(run.matrix_lr), "--optim.momentum", str(run.momentum),
        "--optim.weight-decay", str(run.weight_decay), "--schedule.name", schedule,
        "--schedule.average", str(run.average),
        *(["--schedule.cooldown", *cooldown] if cooldown else []), *(["--optim.lr", str(run.lr)] if run.lr else []),
    ]  # fmt: skip
    name = "-".join(map(str, run)).replace(" ", "-")
    _, report, lines = trained(work, name, run.text, run.part, source, run.shape, options)
    looks = [line for line in lines if "val_loss" in line]
    best = min(looks, key=lambda line: line["val_loss"])
    return {
        **run._asdict(),
        "steps": steps,
        "tokens": lines[-1]["tokens"],
        "unique_tokens": report["stats"]["train"]["tokens"],
        "best": best["val_loss"],
        "best_step": best["step"],
        "last": looks[-1]["val_loss"],
        "train_loss": statistics.mean(line["train_loss"] for line in lines[-10:]),
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in lines),
    }


def table(asked: Question, results: dict[Run, dict[str, Any]]) -> list[str]:
    """Markdown: the lowest loss of a run and where it stood at the end, means over seeds; their noise below."""
    cells: dict[Run, dict[tuple[Any, ...], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    nothing = asked.runs[0]._asdict()
    for run in asked.runs:
        if run in results:
            value = tuple(getattr(run, name) for name in asked.varied)
            row = run._replace(seed=0, **{name: nothing[name] for name in asked.varied})
            cells[row][value].append(results[run])
    values = list(dict.fromkeys(tuple(getattr(run, name) for name in asked.varied) for run in asked.runs))
    lines = [f"### {asked.title}", "", f"| text, model, passes | steps | {' | '.join(map(_words, values))} | noise |"]
    lines += ["|" + "---|" * (len(values) + 3)]
    for row, by_value in cells.items():
        first = next(iter(by_value.values()))[0]
        shown = [_cell(by_value.get(value, [])) for value in values]
        where = f"{first['unique_tokens']:,} tokens of {row.text}, {row.shape}, {row.epochs:g}"
        where += f", {row.batch} sequences a step" if row.batch != Run._field_defaults["batch"] else ""
        lines.append(f"| {where} | {first['steps']} | {' | '.join(shown)} | {_noise(by_value.values())} |")
    return [*lines, ""]


def _words(value: tuple[Any, ...]) -> str:
    return " ".join(f"{part:g}" if isinstance(part, float) else str(part or "by width") for part in value)


def _cell(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    best, last = (statistics.mean(run[name] for run in runs) for name in ("best", "last"))
    return f"{best:.3f}" if last - best < 5e-4 else f"{best:.3f} → {last:.3f}"


def _noise(cells: Iterable[list[dict[str, Any]]]) -> str:
    """Standard deviation of one seed's lowest loss, pooled over the settings of a row."""
    spreads = [statistics.variance(run["best"] for run in runs) for runs in cells if len(runs) > 1]
    return f"{statistics.mean(spreads) ** 0.5:.3f}" if spreads else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", help="tinyshakespeare.txt")
    parser.add_argument("--runs", type=int, help="at most so many more; else all")
    arguments = parser.parse_args()
    source = str(Path(arguments.text).resolve()) if arguments.text else None
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    known = Run._field_defaults  # a setting that came later
    results = {Run(*(line.get(n, known.get(n)) for n in Run._fields)): line for line in map(json.loads, lines)}
    wanted = sorted(dict.fromkeys(run for asked in questions() for run in asked.runs), key=lambda run: run.seed)
    left = [run for run in wanted if run not in results and (run.text == "prose" or source)]
    now = left[: arguments.runs]
    for name, runs in (("All that is left", left), ("Now", now)):
        print(f"{name}: {len(runs)} runs, {sum(run.seconds for run in runs) / 2 / 60:.1f} minutes", file=sys.stderr)
    writing = threading.Lock()

    def make(work: Path, run: Run) -> None:
        result = train(work, source, run)
        with writing, RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")
            results[run] = result
            print(*run, f"{result['best']:.4f} {result['last']:.4f}", file=sys.stderr)

    if now:
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
            write_prose(Path(folder))
            list(pool.map(lambda run: make(Path(folder), run), now))
    for asked in questions():
        print("\n".join(table(asked, results)))


if __name__ == "__main__":
    main()
