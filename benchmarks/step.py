"""A whole optimizer step of GPT-2 124M (4 × 256 tokens), ours beside nanoGPT's default: fp32 weights on both sides.

Two processes stand side by side and make their steps in turn, so that the machine's moods meet both. Ours is the
trainer itself, with what `gpt2 train` would choose on this machine; nanoGPT's is its `train.py` on a CPU: eager, fp32.

    python benchmarks/step.py --nanogpt PATH
    python benchmarks/step.py --nanogpt PATH --device cuda
    python benchmarks/step.py --device cuda --profile 30  # of ours, what takes longest; nothing is recorded

On a GPU a step has 480 × 1,024 tokens, as nanoGPT's `config/train_gpt2.py` has, in bf16 and compiled on both sides:
nanoGPT's in its micro-batches of 12, ours in those that it would choose.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from results import machine, write_section

VOCABULARY = 50257
ROWS = {"cpu": 4, "cuda": 480}
CONTEXT = {"cpu": 256, "cuda": 1024}

OURS = """
import functools, time, torch
from gpt2.config.presets import PRESETS
from gpt2.config.resolve import resolve_micro_batch, resolve_optim
from gpt2.config.schema import ModelSettings, OptimSettings
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.optim.build import build_optimizers
from gpt2.runtime import activation_memory, autocast, keep_freed_memory, pick_matrix_precision, pick_precision
from gpt2.training.compiled import Compiled
from gpt2.training.guard import Guard
from gpt2.training.loss import NextTokenLoss
from gpt2.training.plan import Plan
from gpt2.training.trainer import Trainer
class Noise:
    epoch = 0.0
    batch = torch.randint({vocabulary}, ({rows}, {context})), torch.randint({vocabulary}, ({rows}, {context}))
    def next_batch(self): return self.batch
    def state(self): return {{}}
keep_freed_memory()
device, shape = torch.device("{device}"), PRESETS["gpt2"]
on_gpu = device.type == "cuda"
model = GPT2(GPT2Config({vocabulary}, 1024, shape.n_layer, shape.n_head, shape.n_embd))
model.init_weights(torch.Generator().manual_seed(0))
model.to(device)
optim = resolve_optim(OptimSettings(), shape.n_embd, {rows} * {context}, steps=1, strain=1)
sizes = ModelSettings(**{{**shape._asdict(), "context_length": {context}}})
micro = resolve_micro_batch(sizes, {vocabulary}, {rows}, activation_memory(device))
matrices = pick_matrix_precision("auto", "auto", device)
optim = optim.model_copy(update={{"matrix_precision": matrices}})
loss = NextTokenLoss(model)
objective = Compiled(loss, print) if on_gpu else loss
plan = Plan(micro, 1.0, lambda step: step, functools.partial(autocast, pick_precision("auto", device), device))
trainer = Trainer(model, objective, build_optimizers(model.named_parameters(), optim), lambda step: 1.0,
                  Noise(), Guard(0.0), plan, time.monotonic())
step = trainer.train_step
"""

NANOGPT = """
import contextlib, torch
from model import GPT, GPTConfig
torch.manual_seed(1337)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
device, on_gpu = "{device}", "{device}" == "cuda"
vocabulary = 50304 if on_gpu else {vocabulary}  # as its own training pads it
model = GPT(GPTConfig(block_size=1024, vocab_size=vocabulary, dropout=0.0, bias=False)).to(device)
optimizer = model.configure_optimizers(1e-1, 6e-4, (0.9, 0.95), device)
model = torch.compile(model) if on_gpu else model
scaler = torch.amp.GradScaler(device, enabled=False)
micro = min(12, {rows})
x, y = (torch.randint({vocabulary}, (micro, {context}), device=device) for _ in range(2))
context = torch.amp.autocast("cuda", dtype=torch.bfloat16) if on_gpu else contextlib.nullcontext()
def step():
    for _ in range({rows} // micro):
        with context:
            logits, loss = model(x, y)
            loss = loss / ({rows} // micro)
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
assert "{device}" == "cpu", "on a GPU the peer is nanoGPT"
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

PROFILE = """
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
step(), step()  # the first ones allocate, and compile
with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu) as seen: step()
device = DeviceType.CUDA if on_gpu else DeviceType.CPU
rows = [(row.self_device_time_total if on_gpu else row.self_cpu_time_total, row.count, row.key)
        for row in seen.key_averages() if row.device_type == device]
print("| ms | calls | what |", "|---|---|---|", sep="\\n")
shown = sorted(rows, reverse=True)[:{profiled}]
for time, calls, name in [*shown, (sum(row[0] for row in rows), sum(row[1] for row in rows), "in all")]:
    print(f"| {{time / 1e3:.1f}} | {{calls}} | {{name}} |")
"""

PEAK = """
import torch
a, b = (torch.randn({wide}, {wide}, device="{device}").to(torch.bfloat16) for _ in range(2))
def step():
    a @ b
    if "{device}" == "cuda": torch.cuda.synchronize()
"""
WIDE = {"cpu": 2048, "cuda": 8192}


def sizes(device: str) -> dict[str, str | int]:
    """What the programs are filled with."""
    found = {"vocabulary": VOCABULARY, "rows": ROWS[device], "context": CONTEXT[device], "wide": WIDE[device]}
    return {**found, "device": device}


class Contestant:
    """A process that makes steps when told to."""

    def __init__(self, program: str, folder: Path, device: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program.format(**sizes(device)) + LOOP],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, count: int) -> None:
        """So many steps."""
        assert self.process.stdin
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()

    def took(self) -> float:
        """Seconds of the steps that were begun."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("took"):
                return float(line.split()[1])
        raise SystemExit(f"a contestant ended with {self.process.wait()}")

    def step(self, count: int) -> float:
        """Seconds a step."""
        self.begin(count)
        return self.took() / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout; else the peer is transformers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=list(ROWS))
    parser.add_argument("--profile", type=int, help="show so many kernels, or operators, of a step of ours instead")
    arguments = parser.parse_args()
    if arguments.profile:
        program = (OURS + PROFILE).format(**sizes(arguments.device), profiled=arguments.profile)
        raise SystemExit(subprocess.run([sys.executable, "-c", program], check=False).returncode)
    from gpt2.model.cost import flops_per_token
    from gpt2.model.gpt2 import GPT2Config

    device, here, checkout = arguments.device, Path.cwd(), arguments.nanogpt
    tokens = ROWS[device] * CONTEXT[device]
    work = tokens * flops_per_token(GPT2Config(VOCABULARY, CONTEXT[device], 12, 12, 768))
    product = 2 * WIDE[device] ** 3
    name, rival = ("nanoGPT", (NANOGPT, checkout.resolve())) if checkout else ("transformers", (TRANSFORMERS, here))
    contestants = [Contestant(*who, device) for who in ((OURS, here), rival, (PEAK, here))]
    for contestant in contestants:
        contestant.begin(2)  # the first steps allocate, and compile
    print("seconds of the first two:", *(f"{contestant.took():.0f}" for contestant in contestants), flush=True)
    ours, theirs, peak = contestants
    rows = []
    for number in range(arguments.rounds):
        rows.append((ours.step(3), theirs.step(2), peak.step(40)))
        print(f"round {number + 1}: {tokens / rows[-1][0]:.0f} {tokens / rows[-1][1]:.0f} tokens/s", flush=True)
    for contestant in contestants:
        contestant.process.terminate()
    shares = statistics.median((work / a) / (product / c) for a, _, c in rows)
    rate = statistics.median(work / a for a, _, _ in rows)
    fastest = statistics.median(product / c for _, _, c in rows)
    write_section(
        "3-step" if device == "cpu" else "3-step-on-a-gpu",
        "A step of 124M parameters" + (" on a GPU" if device == "cuda" else ""),
        [
            f"`python benchmarks/step.py{' --device cuda' if device == 'cuda' else ''}` on {machine()}{gpu(device)}. "
            f"{ROWS[device]} × {CONTEXT[device]:,} tokens, fp32 weights; {len(rows)} rounds, in turn.",
            "",
            f"| round | ours, tokens/s | {name}, tokens/s | ratio |",
            "|---|---|---|---|",
            *(f"| {n} | {tokens / a:,.0f} | {tokens / b:,.0f} | {b / a:.2f} |" for n, (a, b, _) in enumerate(rows, 1)),
            "",
            f"Median of the ratios: **{statistics.median(b / a for a, b, _ in rows):.2f}**. Ours does "
            f"{rate / 1e9:,.0f} GFLOP/s, {shares:.0%} of a bf16 product of {WIDE[device]} × {WIDE[device]} in the same "
            f"rounds ({fastest / 1e9:,.0f} GFLOP/s){share_of_peak(rate, device)}.",
        ],
    )


def gpu(device: str) -> str:
    """Its name, behind a comma."""
    import torch

    return f", {torch.cuda.get_device_name()}, torch {torch.__version__}" if device == "cuda" else ""


def share_of_peak(rate: float, device: str) -> str:
    """In words, what share of the GPU's own figure a rate is, in FLOP/s."""
    import torch

    from gpt2.config.gpus import find_gpu

    known = find_gpu(torch.cuda.get_device_name()) if device == "cuda" else None
    return f", and {rate / known.peak:.1%} of the GPU's 16-bit peak (MFU)" if known else ""


if __name__ == "__main__":
    main()
