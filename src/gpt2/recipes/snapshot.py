"""What of a run goes into a checkpoint, and how its weights come back."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from gpt2.chat.template import CHAT_TEMPLATE
from gpt2.distributed import like, whole
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.low_rank import merged
from gpt2.optim.optimizer import Optimizer
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.layout import CONFIG_FILE
from gpt2.tokenizer.roles import roles_of
from gpt2.training import checkpoint
from gpt2.training.fit import Progress
from gpt2.training.optimizer_state import optimizer_tensors
from gpt2.training.trainer import Trainer
from gpt2.weights.huggingface import export_tensors, hf_config, hf_generation_config, load_model

LEARNED = "learned.safetensors"
"""Of a model with LoRA, what is learned, as it is; model.safetensors has it merged."""


def snapshot(
    trainer: Trainer, progress: Progress, texts: Mapping[str, str], record: dict[str, Any]
) -> tuple[Callable[[checkpoint.NewFolder], None], int]:
    """What writes a checkpoint of this moment into a folder, from copies; and about how many bytes that takes.

    Where processes hold shares of the weights, the others must `lend` theirs.

    Args:
        trainer: the run, between two steps.
        progress: what its loop remembers.
        texts: `fixed_texts` of the run.
        record: run.json.
    """
    model = trainer.model
    assert isinstance(model, GPT2)
    # The weights themselves stand among what the optimizers keep, meanwhile.
    with trainer.averaging.in_place(trainer.step):
        plain = merged(model)
        weights = {name: whole(value).detach().to("cpu", copy=True) for name, value in plain.state_dict().items()}
        own = [] if plain is model else [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        learned = {name: parameter.detach().to("cpu", copy=True) for name, parameter in own}
        optimizer = optimizer_tensors(model, trainer.optimizers)
    state = {"format": 1, "trainer": trainer.state(), "progress": progress.to_json()}
    texts = {**texts, "training_state.json": _text(state), "run.json": _text(record)}

    def write(folder: checkpoint.NewFolder) -> None:
        folder.tensors("model.safetensors", export_tensors(weights))
        folder.tensors("training_state.safetensors", optimizer)
        if learned:
            folder.tensors(LEARNED, learned)
        for name, text in texts.items():
            folder.text(name, text)

    tensors = sum(value.nbytes for value in (*weights.values(), *learned.values(), *optimizer.values()))
    return write, tensors + 2**20


def fixed_texts(config: GPT2Config, tokenizer: Tokenizer) -> dict[str, str]:
    """File name → text of what is the same in all checkpoints of a run; with GPT-2's tokenizer, a fifth of a second."""
    files = {
        "config.json": hf_config(config, tokenizer.end_of_text),
        "generation_config.json": hf_generation_config(tokenizer.end_of_text),
        **tokenizer.to_files(config.context_length),
    }
    roles = roles_of(tokenizer)
    if roles is not None:  # an answer ends with a message, or with the text
        files["config.json"]["eos_token_id"] = roles.end
        files["generation_config.json"]["eos_token_id"] = [roles.end, tokenizer.end_of_text]
        files[CONFIG_FILE]["chat_template"] = CHAT_TEMPLATE
    return {name: _text(value) for name, value in files.items()}


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def lend(trainer: Trainer) -> None:
    """Take part in another process's `snapshot` with this one's shares, and keep nothing."""
    assert isinstance(trainer.model, GPT2)
    with trainer.averaging.in_place(trainer.step):
        for value in merged(trainer.model).state_dict().values():
            whole(value)
        for optimizer in trainer.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    whole(value)


def expected_bytes(model: nn.Module, optimizers: Sequence[Optimizer], averaged: bool) -> int:
    """About how many bytes a checkpoint will take, known before the first step."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    kept = sum(
        (optimizer.copies + averaged) * weight.numel() * weight.element_size()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
    )
    return weights + kept + 2**20


def restore_weights(model: GPT2, folder: Path) -> None:
    """Put a checkpoint's weights into a model that is in use, however it is laid over processes.

    Those that are used: where the run keeps means, these, until they are exchanged.
    """
    saved = load_file(folder / LEARNED) if (folder / LEARNED).exists() else load_model(folder).state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(like(saved[name].to(parameter.device), parameter))
