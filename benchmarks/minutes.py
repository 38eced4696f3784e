"""The best loss in a given time: `gpt2 train --train.minutes M` beside nanoGPT's recipe and the same over transformers.

The peers cannot be given a time, so their pace is measured first and their number of steps (and the length of their
decay) follows from it. Each contestant runs alone, on one core where one is given.

    python benchmarks/minutes.py tinyshakespeare.txt --nanogpt PATH --core 0
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from peers import nanogpt, plain_loop, timed
from results import machine, write_section

FEW, MORE = 48, 240
"""Steps of the two runs that tell a peer's pace apart from its start-up."""


def ours(source: str, minutes: float, folder: Path, core: int | None) -> tuple[float, float, str, Path]:
    """Train with nothing but a time: seconds, loss, what was chosen, folder of the tokens."""
    run = f"in-{minutes:g}"
    options = ["--tokenizer", "char", "--data.split", "position", "--train.minutes", f"{minutes:g}", "--run", run]
    seconds, _ = timed([sys.executable, "-m", "gpt2", "train", source, *options], folder, core)
    lines = (folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [loss for line in lines if (loss := json.loads(line).get("val_loss")) is not None]
    record = json.loads((folder / "runs" / run / "run.json").read_text(encoding="utf-8"))
    sizes, train = record["settings"]["model"], record["settings"]["train"]
    shape = f"{sizes['n_layer']} × {sizes['n_embd']}, context {sizes['context_length']}, {train['steps']:,} steps"
    return seconds, min(losses), shape, folder / "runs" / ".prepared" / record["data"]


def paced(make: Callable[[int], tuple[float, float]], minutes: list[float]) -> dict[float, int]:
    """Minutes → steps that a peer makes in them."""
    few, more = make(FEW)[0], make(MORE)[0]
    step = (more - few) / (MORE - FEW)
    return {m: int((60 * m - (few - FEW * step)) / step) for m in minutes}


def filling(make: Callable[[int], tuple[float, float]], steps: int, minutes: float) -> tuple[float, float, int]:
    """Train a peer for a time, with other steps again where they filled it badly: seconds, loss, steps."""
    for _ in range(3):
        seconds, loss = make(steps)
        if abs(seconds / (60 * minutes) - 1) < 0.05:
            break
        steps = round(steps * 60 * minutes / seconds)
    return seconds, loss, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="python-docs", help="text, learned character by character")
    parser.add_argument("--minutes", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--nanogpt", type=Path, help="folder of a nanoGPT checkout; else only the plain loop")
    parser.add_argument("--core", type=int, help="run each contestant on this core alone, with one thread")
    arguments = parser.parse_args()
    source = arguments.source if arguments.source == "python-docs" else str(Path(arguments.source).resolve())
    checkout, core = arguments.nanogpt, arguments.core
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _, _, _, tokens = ours(source, 0.3, folder, core)
        peers: dict[str, Callable[[int], tuple[float, float]]] = {}
        if checkout is not None:
            peers["nanoGPT's CPU recipe"] = lambda steps: nanogpt(checkout.resolve(), tokens, folder, steps, core)
        peers["the same over transformers"] = lambda steps: plain_loop(tokens, folder, steps, core)
        steps = {name: paced(make, arguments.minutes) for name, make in peers.items()}
        for minutes in arguments.minutes:
            seconds, loss, shape, _ = ours(source, minutes, folder, core)
            cells = [f"{loss:.4f} ({seconds:.0f} s; {shape})"]
            for name, make in peers.items():
                seconds, loss, made = filling(make, steps[name][minutes], minutes)
                cells.append(f"{loss:.4f} ({seconds:.0f} s; {made:,} steps)")
            rows.append(f"| {minutes:g} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    where = f"one core and one thread each (core {core})" if core is not None else "all cores"
    write_section(
        "2-minutes",
        "The best loss in so many minutes",
        [
            f"`python benchmarks/minutes.py` on {machine()}, {where}. Source {Path(source).name}, characters.",
            "Loss in nats a character on the whole validation part, in windows of the model's own context.",
            "Ours is given the time and nothing else; the peers' steps and decay are set to fill it.",
            "",
            f"| minutes | gpt2 train --train.minutes | {' | '.join(peers)} |",
            "|---|---|" + "---|" * len(peers),
            *rows,
        ],
    )


if __name__ == "__main__":
    main()
