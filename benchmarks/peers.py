"""The peers' recipes on our tokens, and the loss that each reaches on the whole validation part.

The recipe is nanoGPT's small one for a CPU: 4 layers, 4 heads, width 128, context 64, batches of 12, AdamW, cosine
decay to a tenth. Either nanoGPT itself makes it, from a checkout, or a plain loop over `transformers`' model.
"""

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from gpt2.corpus.shards import TokenShards

CONTEXT = 64

PLAIN_LOOP = """
import sys, math, numpy as np, torch
from transformers import GPT2Config, GPT2LMHeadModel
train = np.fromfile("train.bin", dtype=np.uint16).astype(np.int64)
ids, context, steps = map(int, sys.argv[1:])
torch.manual_seed(1337)
config = GPT2Config(vocab_size=ids, n_positions=context, n_embd=128, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0,
                    attn_pdrop=0, use_cache=False)
model = GPT2LMHeadModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(
    (s + 1) / 100, 0.1 + 0.45 * (1 + math.cos(math.pi * max(0, s - 100) / max(1, steps - 100)))))
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
    "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--dropout=0.0",
)  # fmt: skip
"""The line for a CPU in its README."""

WHOLE_LOSS = """
import sys, numpy as np, torch
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


def timed(argv: list[str], folder: Path, core: int | None = None) -> tuple[float, str]:
    """Run a process to its end, on one core if one is given: seconds and what it printed."""
    environment = dict(os.environ)
    if core is not None:
        argv = ["taskset", "-c", str(core), *argv]
        environment["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(argv[:6])} … ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - began, done.stdout


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


def plain_loop(tokens: Path, folder: Path, steps: int, core: int | None = None) -> tuple[float, float]:
    """Train by the recipe over `transformers`' model: seconds, loss on the whole validation part."""
    ids = lay_out(tokens, folder)
    seconds, _ = timed([sys.executable, "-c", PLAIN_LOOP, str(ids), str(CONTEXT), str(steps)], folder, core)
    return seconds, _whole_loss("plain", folder / "val.bin", folder / "out.pt", folder, core)


def nanogpt(checkout: Path, tokens: Path, folder: Path, steps: int, core: int | None = None) -> tuple[float, float]:
    """Train by nanoGPT itself: seconds, loss on the whole validation part.

    Its recipe looks at the loss 8 times in 2,000 steps, and weights are kept only then: also for another length, made
    a multiple of 8.
    """
    data = checkout / "data" / "shakespeare_char"
    lay_out(tokens, data)
    out = folder / "nanogpt"
    interval = max(1, steps // 8)
    length = (f"--max_iters={8 * interval}", f"--lr_decay_iters={8 * interval}", f"--eval_interval={interval}")
    seconds, _ = timed([sys.executable, "train.py", *NANOGPT_OPTIONS, *length, f"--out_dir={out}"], checkout, core)
    return seconds, _whole_loss("nanogpt", data / "val.bin", out / "ckpt.pt", checkout, core)


def _whole_loss(kind: str, held: Path, weights: Path, folder: Path, core: int | None) -> float:
    _, said = timed([sys.executable, "-c", WHOLE_LOSS, kind, str(held), str(CONTEXT), str(weights)], folder, core)
    return float(said.split()[-1])  # nanoGPT also says how many parameters it has
