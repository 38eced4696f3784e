"""`make bench`: our training beside a plain loop over `transformers`, same data, shape and recipe, in one run.

Both train the shape of nanoGPT's small CPU recipe (4 layers, 4 heads, width 128, context 64, characters) on the same
tokens with AdamW, at the same rates in the same schedule; each side is timed as a whole process, start-up included,
in turn, and the ratio is what counts.
Text: the path given as argument (tinyshakespeare.txt for the figures in RESULTS.md), else the embedded corpus.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
STEPS, BATCH, CONTEXT = 600, 32, 64

PEER = """
import sys, numpy as np, torch
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
from gpt2.corpus.shards import TokenShards
folder, steps, batch, context = Path(sys.argv[1]), *map(int, sys.argv[2:])
train, held = (np.asarray(s.read(0, len(s))).astype(np.int64) for s in
               (TokenShards(folder, part) for part in ("train", "validation")))
torch.manual_seed(1337)
config = GPT2Config(vocab_size=int(max(train.max(), held.max())) + 1, n_positions=context, n_embd=128, n_layer=4,
                    n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.99), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda s: min((s + 1) / (0.05 * steps), (steps - s) / (0.95 * steps)))
draw = np.random.default_rng(0)
for _ in range(steps):
    starts = draw.integers(0, len(train) - context - 1, batch)
    rows = torch.from_numpy(np.stack([train[s : s + context + 1] for s in starts]))
    loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), schedule.step(), optimizer.zero_grad(set_to_none=True)
model.eval()
total = count = 0
with torch.no_grad():
    for start in range(0, len(held) - 1, context):
        row = torch.from_numpy(held[start : start + context + 1])[None]
        total += torch.nn.functional.cross_entropy(model(row[:, :-1]).logits[0], row[0, 1:], reduction="sum").item()
        count += row.shape[1] - 1
print(total / count)
"""


def timed(argv: list[str], folder: Path) -> tuple[float, str]:
    """Run a process to its end: seconds and what it printed."""
    began = time.perf_counter()
    out = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True).stdout
    return time.perf_counter() - began, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", default="python-docs")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    source = arguments.source if arguments.source == "python-docs" else str(Path(arguments.source).resolve())
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = str(ROOT / "configs" / "shakespeare-char.toml")
        for number in range(arguments.rounds):
            run = f"round-{number}"
            seed = str(1337 + number)
            options = ["--config", config, "--run", run, "--train.seed", seed]
            ours, _ = timed([sys.executable, "-m", "gpt2", "train", source, *options], folder)
            lines = (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
            our_loss = min(json.loads(line).get("val_loss", 9e9) for line in lines)
            prepared = json.loads((folder / "runs" / run / "run.json").read_text())["data"]
            tokens = str(folder / "runs" / ".prepared" / prepared)
            theirs, out = timed([sys.executable, "-c", PEER, tokens, str(STEPS), str(BATCH), str(CONTEXT)], folder)
            rows.append((ours, our_loss, theirs, float(out)))
            print(f"round {number + 1}: ours {ours:.1f} s, {our_loss:.4f}; plain loop {theirs:.1f} s, {float(out):.4f}")
    ratio = statistics.median(theirs / ours for ours, _, theirs, _ in rows)
    page = [
        "# Results",
        "",
        f"`make bench` on {date.today()}, {platform.machine()}, Python {platform.python_version()}, "
        f"{len(rows)} rounds, source {Path(source).name}. Whole processes, start-up included, in turn.",
        "",
        f"Characters, 4 layers, 4 heads, width 128, context {CONTEXT}, {STEPS} steps of {BATCH}. Loss on the whole "
        "validation part, nats a token.",
        "",
        "| round | `gpt2 train`, s | loss | transformers' model in a plain loop, s | loss |",
        "|---|---|---|---|---|",
        *(f"| {n + 1} | {a:.1f} | {b:.4f} | {c:.1f} | {d:.4f} |" for n, (a, b, c, d) in enumerate(rows)),
        "",
        f"Median time ratio, plain loop to ours: {ratio:.2f}. Ours also validates, samples, plots and saves, twice.",
        "",
    ]
    (ROOT / "benchmarks" / "RESULTS.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
