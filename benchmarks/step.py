"""A whole optimizer step of GPT-2 124M (4 × 256 tokens), ours beside nanoGPT's default: fp32 weights on both sides.

Two processes stand side by side and make their steps in turn, so that the machine's moods meet both. Ours is the
trainer itself, with what `gpt2 train` would choose on this machine; nanoGPT's is its `train.py` on a CPU: eager, fp32.

    python benchmarks/step.py --nanogpt PATH
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from results import machine, write_section

ROWS, CONTEXT, VOCABULARY = 4, 256, 50257
TOKENS = ROWS * CONTEXT

OURS = """
import functools, time, torch
from gpt2.config.presets import PRESETS
from gpt2.config.resolve import resolve_micro_batch, resolve_optim
from gpt2.config.schema import ModelSettings, OptimSettings
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.optim.build import build_optimizers
from gpt2.runtime import activation_memory, autocast, keep_freed_memory, pick_precision
from gpt2.training.guard import Guard
from gpt2.training.loss import NextTokenLoss
from gpt2.training.trainer import Plan, Trainer
class Noise:
    epoch = 0.0
    batch = torch.randint({vocabulary}, ({rows}, {context})), torch.randint({vocabulary}, ({rows}, {context}))
    def next_batch(self): return self.batch
    def state(self): return {{}}
keep_freed_memory()
device, shape = torch.device("cpu"), PRESETS["gpt2"]
model = GPT2(GPT2Config({vocabulary}, 1024, shape.n_layer, shape.n_head, shape.n_embd))
model.init_weights(torch.Generator().manual_seed(0))
optim = resolve_optim(OptimSettings(), shape.n_embd, {rows} * {context})
sizes = ModelSettings(**{{**shape._asdict(), "context_length": {context}}})
micro = resolve_micro_batch(sizes, {vocabulary}, {rows}, activation_memory(device))
plan = Plan(micro, 1.0, lambda step: step, functools.partial(autocast, pick_precision("auto", device, 768), device))
trainer = Trainer(model, NextTokenLoss(model), build_optimizers(model.named_parameters(), optim), lambda step: 1.0,
                  Noise(), Guard(0.0), plan, time.monotonic())
step = trainer.train_step
"""

NANOGPT = """
import torch
from model import GPT, GPTConfig
torch.manual_seed(1337)
model = GPT(GPTConfig(block_size=1024, vocab_size={vocabulary}, dropout=0.0, bias=False))
optimizer = model.configure_optimizers(1e-1, 6e-4, (0.9, 0.95), "cpu")
scaler = torch.amp.GradScaler("cpu", enabled=False)
x, y = torch.randint({vocabulary}, ({rows}, {context})), torch.randint({vocabulary}, ({rows}, {context}))
def step():
    logits, loss = model(x, y)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    loss.item()
"""

LOOP = """
import sys, time
for line in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(line)): step()
    print("took", time.perf_counter() - began, flush=True)
"""

PEAK = """
import time, torch
a, b = (torch.randn(2048, 2048).to(torch.bfloat16) for _ in range(2))
for _ in range(3): a @ b
took = []
for _ in range(8):
    began = time.perf_counter(); a @ b; took.append(time.perf_counter() - began)
print("peak", 2 * 2048**3 / min(took))
"""


class Contestant:
    """A process that makes steps when told to."""

    def __init__(self, program: str, folder: Path) -> None:
        sizes = {"vocabulary": VOCABULARY, "rows": ROWS, "context": CONTEXT}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program.format(**sizes) + LOOP],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, count: int) -> float:
        """Seconds a step."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("took"):
                return float(line.split()[1]) / count
        raise SystemExit(f"a contestant ended with {self.process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="folder of a nanoGPT checkout")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from gpt2.model.cost import flops_per_token
    from gpt2.model.gpt2 import GPT2Config

    ours, theirs = Contestant(OURS, Path.cwd()), Contestant(NANOGPT, arguments.nanogpt.resolve())
    ours.step(2), theirs.step(1)  # the first steps allocate
    rows = []
    for number in range(arguments.rounds):
        rows.append((ours.step(3), theirs.step(1)))
        print(f"round {number + 1}: {TOKENS / rows[-1][0]:.0f} {TOKENS / rows[-1][1]:.0f} tokens/s", flush=True)
    for contestant in (ours, theirs):
        contestant.process.terminate()
    said = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    peak = float(said.split("peak")[1])
    work = flops_per_token(GPT2Config(VOCABULARY, CONTEXT, 12, 12, 768))
    fastest, middle = min(row[0] for row in rows), statistics.median(row[0] for row in rows)
    write_section(
        "step",
        "A step of 124M parameters",
        [
            f"`python benchmarks/step.py` on {machine()}. 4 × 256 tokens, fp32 weights; {len(rows)} rounds, in turn.",
            "",
            "| round | ours, tokens/s | nanoGPT, tokens/s | ratio |",
            "|---|---|---|---|",
            *(f"| {n} | {TOKENS / a:.0f} | {TOKENS / b:.0f} | {b / a:.2f} |" for n, (a, b) in enumerate(rows, 1)),
            "",
            f"Median of the ratios: **{statistics.median(b / a for a, b in rows):.2f}**. Ours does "
            f"{TOKENS * work / middle / 1e9:.0f} GFLOP/s ({TOKENS * work / fastest / 1e9:.0f} at best), "
            f"{TOKENS * work / middle / peak:.0%} of a bf16 product of 2048 × 2048 ({peak / 1e9:.0f} GFLOP/s).",
        ],
    )


if __name__ == "__main__":
    main()
