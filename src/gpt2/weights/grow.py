"""A model with more ids than it was trained with."""

from dataclasses import replace

import torch

from gpt2.model.gpt2 import GPT2


@torch.no_grad()
def with_more_ids(model: GPT2, first: int, vocab_size: int) -> GPT2:
    """The same network with rows for new ids; what it says of the others, relative to each other, is unchanged.

    A new row is the mean of the old ones and a little noise: so a new id is at first about as likely as an average one,
    and the old probabilities shrink by a bounded factor (Hewitt 2021, "Initializing new word embeddings"). Zeros would
    make it likelier than almost all, and equal rows could not come apart by themselves.

    Args:
        model: may have rows that mean nothing, for alignment; these are made anew too.
        first: the first new id.
        vocab_size: ids in all.
    """
    old = model.wte.weight[:first]
    rows = max(vocab_size, model.config.vocab_size)
    grown = GPT2(replace(model.config, vocab_size=rows))
    noise = torch.Generator().manual_seed(first)
    new = old.mean(0) + 0.1 * old.std() * torch.randn(rows - first, old.shape[1], generator=noise)
    state = model.state_dict() | {"wte.weight": torch.cat([old, new])}
    grown.load_state_dict(state)
    return grown.train(model.training)
