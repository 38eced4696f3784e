"""Fit the law of gpt2/model/scaling.py to the runs in scaling.jsonl, and say by how much it misses each.

python benchmarks/fit_scaling.py
"""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from gpt2.model.cost import block_parameters

LEAST_TOKENS = 250_000
"""A run of fewer has hardly left its warm-up."""
LEAST_BETA = 0.15
"""Below it the law is a straight line in ln D, which no amount of text can bend."""
FIRST = torch.tensor([0.3, 0.2, 1.0, -1.2, 4.0, -1.0, 2.0], dtype=torch.float64)
SPREAD = torch.tensor([0.1, 0.1, 0.5, 0.2, 0.5, 0.2, 0.25], dtype=torch.float64)
"""Where E, G and the logarithms of A, alpha, B, beta - LEAST_BETA and R begin, and how widely they are tried."""


def main() -> None:
    lines = (Path(__file__).parent / "scaling.jsonl").read_text(encoding="utf-8").splitlines()
    runs = [run for line in lines if (run := json.loads(line))["tokens"] >= LEAST_TOKENS]

    def column(name: str) -> Tensor:
        return torch.tensor([run[name] for run in runs], dtype=torch.float64)

    size = torch.tensor([run["n_layer"] * block_parameters(run["n_embd"]) for run in runs], dtype=torch.float64)
    seen, different, best = column("tokens"), column("unique_tokens"), column("best")

    def predicted(p: Tensor) -> Tensor:
        A, alpha, B, beta, R = p[2:].exp()
        repeated = different * (1 + R * (1 - torch.exp(-(seen / different - 1) / R)))
        worth = torch.where(seen <= different, seen, repeated)
        ratio = p[0] + p[1] * column("characters_per_token").log()
        return column("bigram") * (ratio + A * size**-alpha + B * worth ** -(LEAST_BETA + beta))

    found = (math.inf, FIRST)
    for seed in range(12):
        noise = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p = (FIRST + SPREAD * noise).requires_grad_()
        fitting = torch.optim.LBFGS([p], lr=0.5, max_iter=800, line_search_fn="strong_wolfe")

        def loss(p: Tensor = p, fitting: torch.optim.LBFGS = fitting) -> Tensor:
            fitting.zero_grad()
            miss = predicted(p) / best - 1
            kept = (p[3] + 1.2) ** 2 + (p[5] + 1.2) ** 2 + (p[6] - 2) ** 2  # a weak wish for plausible exponents
            total = (torch.sqrt(1 + (miss / 0.02) ** 2) - 1).mean() + 1e-4 * kept
            total.backward()
            return total

        fitting.step(loss)
        if (reached := loss().item()) < found[0]:
            found = (reached, p.detach().clone())
    p = found[1]
    misses = predicted(p) / best - 1
    for run, miss in zip(runs, misses.tolist(), strict=True):
        said = f"{run['text']} {run['shape']} {run['tokens'] / 1e6:.1f}M: {run['best']:.3f}"
        print(f"{said}, missed by {miss * run['best']:+.3f}")
    A, alpha, B, beta, R = p[2:].exp().tolist()
    print(f"E={p[0]:.4f} G={p[1]:.4f} A={A:.4g} alpha={alpha:.4f} B={B:.4g} beta={LEAST_BETA + beta:.4f} R={R:.2f}")
    print(f"noise={misses.pow(2).mean().sqrt():.4f} over {len(runs)} runs")


if __name__ == "__main__":
    main()
