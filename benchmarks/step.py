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
optim = resolve_optim(OptimSettings(), shape.n_embd, {rows} * {context}, steps=1, strain=1)
sizes = ModelSettings(**{{**shape._asdict(), "context_length": {context}}})
micro = resolve_micro_batch(sizes, {vocabulary}, {rows}, activation_memory(device))
plan = Plan(micro, 1.0, lambda step: step, functools.partial(autocast, pick_precision("auto", device), device))
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

TRANSFORMERS = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False))
optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4)
x = torch.randint({vocabulary}, ({rows}, {context}))
def step():
    loss = model(x, labels=x).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
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
import torch
a, b = (torch.randn(2048, 2048).to(torch.bfloat16) for _ in range(2))
step = lambda: a @ b
"""
PEAK_FLOPS = 2 * 2048**3


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
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout; else the peer is transformers")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from gpt2.model.cost import flops_per_token
    from gpt2.model.gpt2 import GPT2Config

    work = TOKENS * flops_per_token(GPT2Config(VOCABULARY, CONTEXT, 12, 12, 768))
    here, checkout = Path.cwd(), arguments.nanogpt
    name, rival = ("nanoGPT", (NANOGPT, checkout.resolve())) if checkout else ("transformers", (TRANSFORMERS, here))
    ours, theirs, peak = Contestant(OURS, here), Contestant(*rival), Contestant(PEAK, here)
    for contestant in (ours, theirs, peak):
        contestant.step(2)  # the first steps allocate
    rows = []
    for number in range(arguments.rounds):
        rows.append((ours.step(3), theirs.step(2), peak.step(40)))
        print(f"round {number + 1}: {TOKENS / rows[-1][0]:.0f} {TOKENS / rows[-1][1]:.0f} tokens/s", flush=True)
    for contestant in (ours, theirs, peak):
        contestant.process.terminate()
    shares = statistics.median((work / a) / (PEAK_FLOPS / c) for a, _, c in rows)
    rate = statistics.median(work / a for a, _, _ in rows)
    fastest = statistics.median(PEAK_FLOPS / c for _, _, c in rows)
    write_section(
        "3-step",
        "A step of 124M parameters",
        [
            f"`python benchmarks/step.py` on {machine()}. 4 × 256 tokens, fp32 weights; {len(rows)} rounds, in turn.",
            "",
            f"| round | ours, tokens/s | {name}, tokens/s | ratio |",
            "|---|---|---|---|",
            *(f"| {n} | {TOKENS / a:.0f} | {TOKENS / b:.0f} | {b / a:.2f} |" for n, (a, b, _) in enumerate(rows, 1)),
            "",
            f"Median of the ratios: **{statistics.median(b / a for a, b, _ in rows):.2f}**. Ours does "
            f"{rate / 1e9:.0f} GFLOP/s, {shares:.0%} of a bf16 product of 2048 × 2048 in the same rounds "
            f"({fastest / 1e9:.0f} GFLOP/s).",
        ],
    )


if __name__ == "__main__":
    main()
