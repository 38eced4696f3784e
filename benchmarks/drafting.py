"""Writing with guesses and without, by one engine in turn: which must say the same, and how much sooner it does.

A 124M of random weights says what it is told: parts of this repository, as a perfect model would that draws at
temperature 1, and tokens in which nothing repeats. It reads them in the time that any other 124M takes.

    python benchmarks/drafting.py
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from decoding import make_folder
from numpy.typing import NDArray
from results import machine, write_section

from gpt2.generation.engine import Engine
from gpt2.generation.load import open_engine
from gpt2.generation.reader import Piece, Reader
from gpt2.generation.request import Delta, Request, Sampling
from gpt2.tokenizer.base import Tokenizer

PROMPT, NEW = 256, 128
HERE = Path(__file__).parent.parent


class Told:
    """Counts readings, and makes a reader say texts that are known, one for each row; it reads as before."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.read = reader, reader.read
        self.texts: list[list[int]] = []
        self.readings = 0
        reader.read = self  # type: ignore[method-assign]

    def __call__(self, pieces: Sequence[Piece]) -> NDArray[np.float32]:
        ends = [self.reader.cache.lengths[piece.row] + len(piece.ids) for piece in pieces]
        logits = self.read(pieces)
        self.readings += 1
        if self.texts:
            following = [
                self.texts[piece.row][place + 1]
                for piece, end in zip(pieces, ends, strict=True)
                for place in range(end - piece.answers, end)
            ]
            logits[range(len(following)), following] = 1e4
        return logits


def compare(engine: Engine, told: Told, asked: list[Request], rounds: int) -> tuple[float, float, float]:
    """Tokens a second without guesses, the median ratio with them, and tokens of a text in a reading with them."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    said: dict[bool, list[tuple[int, Delta]]] = {}
    for _ in engine.run([dataclasses.replace(request, max_tokens=1) for request in asked]):
        pass  # prompts are read here, and not again
    for turn in range(rounds):
        for guessing in (False, True) if turn % 2 else (True, False):
            engine.reader.drafts = guessing
            told.readings = 0
            began = time.perf_counter()
            said[guessing] = sorted(engine.run(asked), key=lambda found: found[0])
            seconds[guessing].append(time.perf_counter() - began)
            if guessing:
                readings = told.readings
        assert said[True] == said[False], "guesses have changed what is written"
    ratios = [plain / guessed for plain, guessed in zip(seconds[False], seconds[True], strict=True)]
    count = sum(len(delta.tokens) for _, delta in said[True])
    share = count / readings / min(len(asked), engine.slots)
    return count / statistics.median(seconds[False]), statistics.median(ratios), share


def texts(tokenizer: Tokenizer) -> dict[str, list[list[int]]]:
    """What the 124M says, eight of each kind."""
    kinds = {"Python source": "src/gpt2/**/*.py", "Markdown": "docs/**/*.md"}
    found = {}
    for name, pattern in kinds.items():
        encoded = (tokenizer.encode(path.read_text(encoding="utf-8")).tolist() for path in sorted(HERE.glob(pattern)))
        long = (ids for ids in encoded if len(ids) > PROMPT + NEW + 8)
        found[name] = [ids[: PROMPT + NEW + 8] for ids in itertools.islice(long, 8)]
    draw = torch.Generator().manual_seed(0)
    found["nothing repeats"] = [torch.randperm(50_000, generator=draw)[: PROMPT + NEW + 8].tolist() for _ in range(8)]
    found["20 tokens at random"] = torch.randint(20, (8, PROMPT + NEW + 8), generator=draw).tolist()
    return found


def rows(rounds: int) -> list[str]:
    """Of the table: the 124M says texts, one or several at once."""
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        make_folder(Path(temporary))
        for precision, slots in [("fp32", 1), ("bf16", 1), ("int8", 1), ("int8", 2)]:
            engine = open_engine(Path(temporary), torch.device("cpu"), precision, slots)
            assert engine.reader.drafts, "there is no compiler"
            told = Told(engine.reader)
            for name, kinds in texts(engine.tokenizer).items():
                told.texts = kinds[:slots]
                asked = [Request(tuple(ids[:PROMPT]), NEW, Sampling(seed=1)) for ids in told.texts]
                # Rows are taken in order by those who come to fresh ones; each text has to meet its own.
                engine = Engine(engine.model, engine.tokenizer, slots, engine.reader)
                for row in range(slots):
                    engine.reader.cache.truncate(row, 0)
                way = compare(engine, told, asked, rounds)
                lines.append(_row(name, precision, slots, *way))
                print(lines[-1], flush=True)
    return lines


def _row(name: str, precision: str, slots: int, rate: float, ratio: float, share: float) -> str:
    return f"| {name} | {precision} | {slots} | {share:.2f} | {rate:.0f} | {rate * ratio:.0f} | **{ratio:.2f}** |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    arguments = parser.parse_args()
    head = ["", "precision", "texts at once", "tokens of each in a reading", "tokens/s without", "with", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += rows(arguments.rounds)
    lines += ["", f"{machine()}; medians of {arguments.rounds} rounds; both sides said the same in each."]
    write_section("drafting", "Guesses", lines)


if __name__ == "__main__":
    main()
