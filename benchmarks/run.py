"""`make bench`: time to a given loss, ours beside a peer's recipe, whole processes in turn, start-up included.

The measure is nanoGPT's small CPU recipe on characters (4 layers, 4 heads, width 128, context 64, 2,000 steps of 12
sequences, AdamW): how long until that loss on the whole validation part? The peer is nanoGPT itself, where a checkout
is given, else the same recipe as a plain loop over `transformers`' model.

    python benchmarks/run.py tinyshakespeare.txt --nanogpt PATH
"""

import argparse
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from gpt2.corpus.shards import TokenShards

ROOT = Path(__file__).parents[1]
CONTEXT = 64
CONFIGS = ("shakespeare-fast", "shakespeare-char")

PLAIN_LOOP = """
import sys, math, numpy as np, torch
from transformers import GPT2Config, GPT2LMHeadModel
train = np.fromfile("train.bin", dtype=np.uint16).astype(np.int64)
ids, context, steps = *map(int, sys.argv[1:]), 2000
torch.manual_seed(1337)
config = GPT2Config(vocab_size=ids, n_positions=context, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0,
                    attn_pdrop=0, use_cache=False)
model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(
    (s + 1) / 100, 0.1 + 0.45 * (1 + math.cos(math.pi * max(0, s - 100) / (steps - 100)))))
draw = np.random.default_rng(0)
for _ in range(steps):
    starts = draw.integers(0, len(train) - context - 1, 12)
    rows = torch.from_numpy(np.stack([train[s : s + context + 1] for s in starts]))
    loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), schedule.step(), optimizer.zero_grad(set_to_none=True)
torch.save(model.state_dict(), "out.pt")
"""

NANOGPT_OPTIONS = (
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=100",
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
    "--lr_decay_iters=2000", "--dropout=0.0",
)  # fmt: skip
"""The line for a CPU in its README."""

WHOLE_LOSS = """
import sys, numpy as np, torch
from pathlib import Path
kind, held, context = sys.argv[1], np.fromfile(sys.argv[2], dtype=np.uint16).astype(np.int64), int(sys.argv[3])
if kind == "nanogpt":
    from model import GPT, GPTConfig
    saved = torch.load(sys.argv[4], map_location="cpu")
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    logits_of = lambda row: model(row, row)[0]
else:
    from transformers import GPT2Config, GPT2LMHeadModel
    saved = torch.load(sys.argv[4])
    ids = saved["transformer.wte.weight"].shape[0]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=ids, n_positions=context, n_embd=128, n_layer=4, n_head=4))
    model.load_state_dict(saved)
    logits_of = lambda row: model(row).logits
model.eval()
total = count = 0
with torch.no_grad():
    for start in range(0, len(held) - 1, context):
        row = torch.from_numpy(held[start : start + context + 1])[None]
        total += torch.nn.functional.cross_entropy(logits_of(row[:, :-1])[0], row[0, 1:], reduction="sum").item()
        count += row.shape[1] - 1
print(total / count)
"""


def timed(argv: list[str], folder: Path) -> tuple[float, str]:
    """Run a process to its end: seconds and what it printed."""
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv[:4])} … ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


def ours(config: str, source: str, seed: int, folder: Path) -> tuple[float, float, Path]:
    """Train with one of our configs: seconds, best validation loss, folder of the tokens."""
    run = f"{config}-{seed}"
    options = ["--config", str(ROOT / "configs" / f"{config}.toml"), "--run", run, "--train.seed", str(seed)]
    seconds, _ = timed([sys.executable, "-m", "gpt2", "train", source, *options], folder)
    lines = (folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    prepared = json.loads((folder / "runs" / run / "run.json").read_text(encoding="utf-8"))["data"]
    losses = [loss for line in lines if (loss := json.loads(line).get("val_loss")) is not None]
    return seconds, min(losses), folder / "runs" / ".prepared" / prepared


def lay_out(tokens: Path, folder: Path) -> int:
    """Write our tokens as nanoGPT's train.bin, val.bin and meta.pkl: number of ids."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = 0
    for ours_name, theirs in (("train", "train.bin"), ("validation", "val.bin")):
        shards = TokenShards(tokens, ours_name)
        part = np.asarray(shards.read(0, len(shards))).astype(np.uint16)
        ids = max(ids, int(part.max()) + 1)
        part.tofile(folder / theirs)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": ids}))
    return ids


def peer(nanogpt: Path | None, tokens: Path, folder: Path) -> tuple[float, float]:
    """Train by the peer's recipe: seconds, loss on the whole validation part."""
    if nanogpt is None:
        ids = lay_out(tokens, folder)
        seconds, _ = timed([sys.executable, "-c", PLAIN_LOOP, str(ids), str(CONTEXT)], folder)
        kind, held, weights, where = "plain", folder / "val.bin", folder / "out.pt", folder
    else:
        data = nanogpt / "data" / "shakespeare_char"
        lay_out(tokens, data)
        out = folder / "nanogpt"
        seconds, _ = timed([sys.executable, "train.py", *NANOGPT_OPTIONS, f"--out_dir={out}"], nanogpt)
        kind, held, weights, where = "nanogpt", data / "val.bin", out / "ckpt.pt", nanogpt
    _, said = timed([sys.executable, "-c", WHOLE_LOSS, kind, str(held), str(CONTEXT), str(weights)], where)
    return seconds, float(said.split()[-1])  # nanoGPT also says how many parameters it has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="python-docs", help="text; else the embedded corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout; else a plain loop with its recipe")
    arguments = parser.parse_args()
    source = arguments.source if arguments.source == "python-docs" else str(Path(arguments.source).resolve())
    nanogpt = arguments.nanogpt.resolve() if arguments.nanogpt else None
    name = "nanoGPT" if nanogpt else "its recipe over transformers"
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(arguments.rounds):
            row: list[float] = []
            tokens = folder
            for config in CONFIGS:
                seconds, loss, tokens = ours(config, source, 1337 + number, folder)
                row += [seconds, loss]
            rows.append((*row, *peer(nanogpt, tokens, folder)))
            print(f"round {number + 1}: " + "  ".join(f"{value:.4g}" for value in rows[-1]), flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ratios = [statistics.median(row[4] / row[place] for row in rows) for place in (0, 2)]
    page = [
        "# Results",
        "",
        f"`make bench` on {date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {len(rows)} rounds.",
        f"Source {Path(source).name}. Whole processes in turn, start-up included; our seed is another in each round.",
        "Loss in nats a token on the whole validation part.",
        f"Peer: {name}, small CPU recipe (4 layers, 4 heads, width 128, context {CONTEXT}).",
        "",
        f"| round | {CONFIGS[0]}, s | loss | {CONFIGS[1]}, s | loss | {name}, s | loss |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {label} | " + " | ".join(f"{v:.1f}" if i % 2 == 0 else f"{v:.4f}" for i, v in enumerate(row)) + " |"
            for label, row in [*enumerate(rows, 1), ("median", medians)]
        ),
        "",
        f"Median of the rounds' time ratios, peer to ours: {ratios[0]:.2f} and {ratios[1]:.2f}.",
        "Ours also validates, samples, draws its curves and saves, with hashes.",
        "",
    ]
    (ROOT / "benchmarks" / "RESULTS.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
