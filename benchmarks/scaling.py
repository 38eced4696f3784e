"""How far a small GPT-2 comes with its size, its tokens and its text: the experiments in docs/experiments.md.

Each run is a whole `gpt2 train`, with one thread: on the prose in Python's own manuals, an eighth or a 32nd of it, or
on the characters of a text. What each reached goes into scaling.jsonl, beside this file; runs that stand there already
are not made again. `fit_scaling.py` fits a law to all of them.

    python benchmarks/scaling.py [tinyshakespeare.txt]     # about 50 minutes on two cores; two runs at a time
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from gpt2.corpus.python_docs import text_documents

HERE = Path(__file__).parent
RESULTS = HERE / "scaling.jsonl"
CONTEXT, BATCH = 128, 16
SHAPES = {"2x64": (2, 2, 64), "3x128": (3, 4, 128), "4x192": (4, 6, 192), "6x256": (6, 8, 256)}


class Run(NamedTuple):
    """What differs from one run to the next."""

    text: str
    part: int
    shape: str
    millions: float
    """Of tokens seen."""
    matrix_lr: float
    dropout: float


def grid() -> list[Run]:
    runs = [Run("prose", 1, shape, m, 0.05, 0.0) for shape, m in product(("2x64", "3x128", "4x192"), (0.1, 0.3, 1.0))]
    runs += [Run("prose", 1, "6x256", m, 0.05, 0.0) for m in (0.1, 0.3)] + [Run("prose", 1, "2x64", 2.0, 0.05, 0.0)]
    runs += [Run("prose", 8, shape, m, 0.05, 0.1) for shape, m in product(("2x64", "3x128"), (0.1, 0.3, 1.0))]
    runs += [Run("prose", 8, "4x192", m, 0.05, 0.1) for m in (0.1, 0.3)]
    runs += [Run("prose", 32, shape, m, 0.05, 0.1) for shape, m in product(("2x64", "3x128"), (0.1, 0.3))]
    runs += [Run("prose", 32, "4x192", 0.1, 0.05, 0.1), Run("prose", 1, "2x64", 4.0, 0.03, 0.1)]
    runs += [Run("prose", 1, "3x128", 2.0, 0.03, dropout) for dropout in (0.1, 0.2)]
    characters = (("2x64", 1.0), ("3x128", 0.5), ("3x128", 2.0), ("4x192", 0.5), ("2x64", 4.0), ("6x256", 0.5))
    runs += [Run("shakespeare", 1, shape, m, 0.03, 0.0) for shape, m in (*characters, ("4x192", 2.0))]
    return [*runs, Run("shakespeare", 1, "3x128", 2.0, 0.05, 0.0)]


def write_prose(folder: Path) -> None:
    """The prose of the manuals as tables: all of it, an eighth, a 32nd."""
    for part in (1, 8, 32):
        with (folder / f"part-{part}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("name", "text"), *text_documents()[::part]])


def trained(
    work: Path, name: str, text: str, part: int, source: str | None, shape: str, options: list[str]
) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Train with one thread, on a part of the prose or on a source's characters: folder, report, lines of metrics."""
    n_layer, n_head, n_embd = SHAPES[shape]
    if text == "prose":
        reading = [f"part-{part}.csv", "--data.columns", "text"]
    else:
        assert source is not None
        reading = [source, "--tokenizer", "char", "--data.split", "position"]
    command = [
        sys.executable, "-m", "gpt2", "train", *reading, "--run", name, "--model.n-layer", str(n_layer),
        "--model.n-head", str(n_head), "--model.n-embd", str(n_embd), "--model.context-length", str(CONTEXT),
        "--train.sample-tokens", "0", *options,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True)
    folder = work / "runs" / name
    report = json.loads((folder / "report.json").read_text())
    return folder, report, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(work: Path, source: str | None, run: Run) -> dict[str, object]:
    n_layer, _, n_embd = SHAPES[run.shape]
    steps = round(run.millions * 1e6 / (CONTEXT * BATCH))
    options = [
        "--train.batch-size", str(BATCH), "--train.steps", str(steps), "--train.eval-every", str(max(10, steps // 8)),
        "--schedule.name", "linear", "--model.dropout", str(run.dropout), "--optim.matrix-lr", str(run.matrix_lr),
        "--optim.weight-decay", "0.1",
    ]  # fmt: skip
    name = "-".join(map(str, run))
    folder, report, lines = trained(work, name, run.text, run.part, source, run.shape, options)
    prepared = work / "runs/.prepared" / json.loads((folder / "run.json").read_text())["data"]
    return {
        **run._asdict(),
        "n_layer": n_layer,
        "n_embd": n_embd,
        "tokens": lines[-1]["tokens"],
        "unique_tokens": report["stats"]["train"]["tokens"],
        "vocab_size": report["stats"]["vocab_size"],
        "characters_per_token": report["characters_per_token"],
        "bigram": json.loads((prepared / "baselines.json").read_text())["bigram"],
        "best": min(line["val_loss"] for line in lines if "val_loss" in line),
        "last": lines[-1]["val_loss"],
        "tokens_per_second": sorted(line["tokens_per_second"] for line in lines)[len(lines) // 2],
    }


def main() -> None:
    source = str(Path(sys.argv[1]).resolve()) if len(sys.argv) > 1 else None
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    known = {tuple(json.loads(line)[name] for name in Run._fields) for line in lines}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_prose(work)
        with ThreadPoolExecutor(2) as pool, RESULTS.open("a") as file:
            left = [run for run in grid() if run not in known and (run.text == "prose" or source)]
            for result in pool.map(lambda run: train(work, source, run), sorted(left, key=lambda run: run.millions)):
                print(result, file=sys.stderr)
                file.write(json.dumps(result) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
