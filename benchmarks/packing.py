"""Rows of one conversation each, sorted by length, against rows packed full with a block mask: answers a second.

    python benchmarks/packing.py FILE [--preset gpt2-midi] [--length 1024] [--conversations 96]

Both read the same conversations of FILE, forward and backward through the same model in fp32. The packed side fills
rows of --length tokens greedily, lets every token see its own conversation only, and begins positions anew in each.
Seconds are CPU time of one thread, which other programs on the machine do not lengthen.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.chat.prepare import prepare_conversations
from gpt2.config.presets import PRESETS
from gpt2.config.schema import DataSettings
from gpt2.corpus.conversations import open_conversations
from gpt2.corpus.fields import Fields
from gpt2.corpus.shards import TokenShards
from gpt2.data.conversations import ConversationLoader, ConversationRows, answer_targets
from gpt2.data.dataset import IGNORED
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.tokenizer.roles import RoleTokenizer
from gpt2.training.loss import NextTokenLoss, linear_cross_entropy


def packed(rows: ConversationRows, chosen: list[int], length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, targets, positions (B, T) and mask (B, 1, T, T) of conversations laid end to end."""
    bins: list[list[int]] = []
    for index in sorted(chosen, key=lambda index: -rows.lengths[index]):  # first fit, longest first
        size = rows.lengths[index]
        fitting = next((b for b in bins if sum(rows.lengths[i] for i in b) + size <= length), None)
        if fitting is None:
            bins.append(fitting := [])
        fitting.append(index)
    shape = (len(bins), length)
    inputs, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    positions, which = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    for row, members in enumerate(bins):
        at = 0
        for index in members:
            ids = rows.ids(index)
            end = at + len(ids) - 1
            inputs[row, at:end] = torch.from_numpy(ids[:-1])
            targets[row, at:end] = torch.from_numpy(answer_targets(ids, rows.roles))
            positions[row, at:end] = torch.arange(end - at)
            which[row, at:end] = index
            at = end
    same = which[:, :, None] == which[:, None, :]
    return inputs, targets, positions, (same & torch.ones(length, length).tril().bool())[:, None]


def packed_loss(model: GPT2, inputs: Tensor, targets: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """The model's forward pass with these positions and this mask, block by block."""
    x = model.wte(inputs) + model.wpe(positions)
    for block in model.h:
        attention, seen = block.attn, block.ln_1(x)  # type: ignore[union-attr, operator]
        heads = [
            part.unflatten(2, (attention.n_head, -1)).transpose(1, 2)  # type: ignore[union-attr]
            for part in attention.c_attn(seen).chunk(3, 2)  # type: ignore[union-attr, operator]
        ]
        mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + attention.c_proj(mixed)  # type: ignore[union-attr, operator]
        x = x + block.mlp(block.ln_2(x))  # type: ignore[union-attr, operator]
    return linear_cross_entropy(model.ln_f(x), model.output_matrix, targets)[0]


def seconds(work: Callable[[], Tensor], rounds: int = 5) -> float:
    taken = []
    for _ in range(rounds):
        began = time.process_time()
        work().backward()
        taken.append(time.process_time() - began)
    return statistics.median(taken)


def compare() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--preset", default="gpt2-midi", choices=list(PRESETS))
    parser.add_argument("--length", type=int, default=None, help="of packed rows; else the preset's context")
    parser.add_argument("--conversations", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = PRESETS[given.preset]
    length = given.length or shape.context_length
    tokenizer = RoleTokenizer(gpt2_tokenizer())
    with TemporaryDirectory() as folder:
        data = DataSettings()
        conversations = open_conversations([given.file], Fields(), data)
        made = prepare_conversations(conversations, None, tokenizer, shape.context_length, data, Path(folder))
        rows = ConversationRows(TokenShards(made.folder, "train"), tokenizer.roles)
        loader = ConversationLoader(rows, batch_size=16, seed=0)
        batches = [loader.next_batch() for _ in range(given.conversations // 16)]
        chosen = np.concatenate([loader._chosen(batch) for batch in range(len(batches))]).tolist()
        model = GPT2(GPT2Config(tokenizer.vocab_size, shape.context_length, *shape[:3]))
        model.init_weights(torch.Generator().manual_seed(0))
        full = packed(rows, chosen, length)
        objective = NextTokenLoss(model)

        def by_rows() -> Tensor:
            return torch.stack([objective(*batch)[0] for batch in batches]).sum()

        def by_packs() -> Tensor:
            parts = [tuple(tensor[i : i + 2] for tensor in full) for i in range(0, len(full[0]), 2)]
            return torch.stack([packed_loss(model, *part) for part in parts]).sum()  # type: ignore[arg-type]

        one, other = by_rows().item(), by_packs().item()
        assert abs(one - other) < 1e-4 * one, f"the losses differ: {one}, {other}"
        used = sum(rows.lengths[index] for index in chosen)
        places = sum(inputs.numel() for inputs, _ in batches)
        answers = int((full[1] != IGNORED).sum())
        timed = {"rows": seconds(by_rows), "packed": seconds(by_packs)}
        result = {
            "preset": given.preset,
            "rows: share of places that are filling": round(1 - used / places, 4),
            "packed: share of places that are filling": round(1 - used / full[0].numel(), 4),
            **{f"{name}: answer tokens a second": round(answers / took) for name, took in timed.items()},
            "rows / packed": round(timed["packed"] / timed["rows"], 2),
        }
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    compare()
