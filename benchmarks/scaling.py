"""How far a small GPT-2 comes with its size, its tokens and its text: the experiments in docs/experiments.md.

Each run is a whole `gpt2 train` on the prose in Python's own manuals, or an eighth or a 32nd of it. What each
reached goes into scaling.jsonl, beside this file; runs that stand there already are not made again.

    python benchmarks/scaling.py          # about 14 minutes on two cores; two runs at a time
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gpt2.corpus.python_docs import text_documents

HERE = Path(__file__).parent
RESULTS = HERE / "scaling.jsonl"
CONTEXT, BATCH = 128, 16
SHAPES = {"2x64": (2, 2, 64), "3x128": (3, 4, 128), "4x192": (4, 6, 192), "6x256": (6, 8, 256)}
GRID = {
    1: {"2x64": (0.1, 0.3, 1.0, 2.0), "3x128": (0.1, 0.3, 1.0), "4x192": (0.1, 0.3, 1.0), "6x256": (0.1, 0.3)},
    8: {"2x64": (0.1, 0.3, 1.0), "3x128": (0.1, 0.3, 1.0), "4x192": (0.1, 0.3)},
    32: {"2x64": (0.1, 0.3), "3x128": (0.1, 0.3), "4x192": (0.1,)},
}
"""Part of the text → shape → millions of tokens."""


def train(work: Path, part: int, shape: str, millions: float) -> dict[str, object]:
    n_layer, n_head, n_embd = SHAPES[shape]
    name = f"{part}-{shape}-{millions}"
    steps = round(millions * 1e6 / (CONTEXT * BATCH))
    command = [
        sys.executable, "-m", "gpt2", "train", f"part-{part}.csv", "--data.columns", "text", "--run", name,
        "--model.n-layer", str(n_layer),
        "--model.n-head", str(n_head), "--model.n-embd", str(n_embd), "--model.context-length", str(CONTEXT),
        "--train.batch-size", str(BATCH), "--train.steps", str(steps), "--train.eval-every", str(max(10, steps // 8)),
        "--train.sample-tokens", "0", "--schedule.name", "linear", "--model.dropout", "0" if part == 1 else "0.1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True)
    run = work / "runs" / name
    report = json.loads((run / "report.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    prepared = work / "runs/.prepared" / json.loads((run / "run.json").read_text())["data"]
    return {
        "text": "prose",
        "characters_per_token": report["characters_per_token"],
        "part": part,
        "shape": shape,
        "n_layer": n_layer,
        "n_embd": n_embd,
        "tokens": lines[-1]["tokens"],
        "unique_tokens": report["stats"]["train"]["tokens"],
        "vocab_size": report["stats"]["vocab_size"],
        "bigram": json.loads((prepared / "baselines.json").read_text())["bigram"],
        "best": min(line["val_loss"] for line in lines if "val_loss" in line),
        "last": lines[-1]["val_loss"],
        "tokens_per_second": sorted(line["tokens_per_second"] for line in lines)[len(lines) // 2],
    }


def main() -> None:
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    known = {(r["part"], r["shape"], round(r["tokens"] / 1e6, 1)) for r in done if r["text"] == "prose"}
    jobs = [(part, shape, size) for part, shapes in GRID.items() for shape, sizes in shapes.items() for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in GRID:
            with (work / f"part-{part}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("name", "text"), *text_documents()[::part]])
        with ThreadPoolExecutor(2) as pool, RESULTS.open("a") as file:
            left = sorted((job for job in jobs if job not in known), key=lambda job: job[2])
            for result in pool.map(lambda job: train(work, *job), left):
                print(result, file=sys.stderr)
                file.write(json.dumps(result) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
