"""A model of a few thousand random weights, in memory and as a folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.weights.huggingface import to_files
from tests.serve.fake import BYTES

CONTEXT = 128


def tiny_model() -> GPT2:
    """A model whose texts vary, and do not end by themselves."""
    model = GPT2(GPT2Config(BYTES.vocab_size, CONTEXT, n_layer=2, n_head=2, n_embd=16, dropout=0.0))
    model.init_weights(torch.Generator().manual_seed(5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.0 if name == "wte.weight" else 12.0)
        # The last number of each place is always 30, and only the end of the text has something against it.
        model.ln_f.weight[-1], model.ln_f.bias[-1] = 0.0, 30.0
        model.wte.weight[:, -1] = 0.0
        model.wte.weight[BYTES.end_of_text :] = 0.0
        model.wte.weight[BYTES.end_of_text, -1] = -3.0
    return model.eval()


def tiny_folder(folder: Path) -> Path:
    """The same, as Hugging Face has it."""
    config, generation, tensors = to_files(tiny_model(), BYTES.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **BYTES.to_files(CONTEXT)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
