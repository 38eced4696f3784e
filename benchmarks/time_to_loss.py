"""Time to a given loss, ours beside a peer's recipe: whole processes in turn, start-up included.

The measure is nanoGPT's small CPU recipe on characters, 2,000 steps: how long until that loss on the whole validation
part? The peer is nanoGPT itself, where a checkout is given, else the same recipe over `transformers`' model.

    python benchmarks/time_to_loss.py tinyshakespeare.txt --nanogpt PATH
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from peers import CONTEXT, nanogpt, plain_loop, timed
from results import machine, write_section

ROOT = Path(__file__).parents[1]
CONFIGS = ("shakespeare-fast", "shakespeare-char")
STEPS = 2000


def ours(config: str, source: str, seed: int, folder: Path) -> tuple[float, float, Path]:
    """Train with one of our configs: seconds, best validation loss, folder of the tokens."""
    run = f"{config}-{seed}"
    options = ["--config", str(ROOT / "configs" / f"{config}.toml"), "--run", run, "--train.seed", str(seed)]
    seconds, _ = timed([sys.executable, "-m", "gpt2", "train", source, *options], folder)
    lines = (folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    prepared = json.loads((folder / "runs" / run / "run.json").read_text(encoding="utf-8"))["data"]
    losses = [loss for line in lines if (loss := json.loads(line).get("val_loss")) is not None]
    return seconds, min(losses), folder / "runs" / ".prepared" / prepared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="python-docs", help="text; else the embedded corpus")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout; else a plain loop with its recipe")
    arguments = parser.parse_args()
    source = arguments.source if arguments.source == "python-docs" else str(Path(arguments.source).resolve())
    name = "nanoGPT" if arguments.nanogpt else "its recipe over transformers"
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number in range(arguments.rounds):
            row: list[float] = []
            tokens = folder
            for config in CONFIGS:
                seconds, loss, tokens = ours(config, source, 1337 + number, folder)
                row += [seconds, loss]
            if arguments.nanogpt:
                theirs = nanogpt(arguments.nanogpt.resolve(), tokens, folder, STEPS)
            else:
                theirs = plain_loop(tokens, folder, STEPS)
            rows.append((*row, *theirs))
            print(f"round {number + 1}: " + "  ".join(f"{value:.4g}" for value in rows[-1]), flush=True)
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ratios = [statistics.median(row[4] / row[place] for row in rows) for place in (0, 2)]
    write_section(
        "1-time-to-loss",
        "Time to nanoGPT's loss",
        [
            f"`python benchmarks/time_to_loss.py` on {machine()}; {len(rows)} rounds.",
            f"Source {Path(source).name}. Whole processes in turn, start-up included; our seed is another each time.",
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
            f"Median of the rounds' time ratios, peer to ours: **{ratios[0]:.2f}** and {ratios[1]:.2f}.",
            "Ours also validates, samples, draws its curves and saves, with hashes.",
        ],
    )


if __name__ == "__main__":
    main()
