"""GPT-2 folders as Hugging Face's transformers reads and writes them: `config.json` and `model.safetensors`.

The weights bear the same names on both sides, there behind the prefix `transformer.`; four matrices of a block
are transposed, because OpenAI multiplied from the other side (`Conv1D` there, `nn.Linear` here).
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.errors import CheckpointError
from gpt2.files import read_json
from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2, GPT2Config

CONFIG_FILE = "config.json"
WEIGHT_FILE = "model.safetensors"

_PREFIX = "transformer."
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Causal masks that transformers once stored beside the weights. They follow from the context length.
_OLD_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_OUTPUT = "lm_head.weight"  # the tied output matrix; some tools store it a second time
_FLOATS = ("F64", "F32", "F16", "BF16")

# What a config.json may say besides its sizes and still mean the network of model/gpt2.py; where it says nothing,
# transformers assumes the first value.
_GPT2_VALUES: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
# The largest sizes that are believed: far above every GPT-2, far below what would exhaust memory by itself.
_LARGEST = {"vocab_size": 2**24, "n_positions": 2**20, "n_embd": 2**16, "n_layer": 2**10, "n_head": 2**12}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def hf_config(config: GPT2Config, end_of_text: int) -> dict[str, Any]:
    """The content of `config.json` that describes a model.

    Args:
        config: the model's sizes and dropout.
        end_of_text: the tokenizer's id of the mark between documents.
    """
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def hf_generation_config(end_of_text: int) -> dict[str, Any]:
    """The content of `generation_config.json`: a text begins and ends with the mark between documents."""
    return {"bos_token_id": end_of_text, "eos_token_id": end_of_text}


def export_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our `state_dict` under transformers' names and in its layout, every tensor contiguous.

    What needs no transposing is not copied: write it before the model trains on. Since it only looks at names,
    it translates anything that is named like the weights, such as gradients.
    """
    return {
        _PREFIX + name: (tensor.t() if name.endswith(_TRANSPOSED) else tensor).detach().contiguous()
        for name, tensor in state_dict.items()
    }


def to_files(model: GPT2, end_of_text: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """What goes into `config.json`, `generation_config.json` and `model.safetensors`.

    transformers wants the last one written with the metadata `{"format": "pt"}`.
    """
    return (
        hf_config(model.config, end_of_text),
        hf_generation_config(end_of_text),
        export_tensors(model.state_dict()),
    )


def config_from_hf(values: Any, path: Path) -> GPT2Config:
    """The model that a `config.json` describes, if that is GPT-2 to the letter.

    Args:
        values: the file's JSON value.
        path: where it was read, for the message.

    Raises:
        CheckpointError: a size is missing or absurd, or something in it would change the logits. All is named.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no settings of a model.", "Choose the folder of a GPT-2 model.")
    if values.get("model_type") != "gpt2":
        raise CheckpointError(
            f"{path} describes a model of type {values.get('model_type')!r}, not 'gpt2'.",
            "Choose the folder of a GPT-2 model.",
        )

    problems = []
    for name, largest in _LARGEST.items():
        size = values.get(name)
        if type(size) is not int or not 1 <= size <= largest:
            problems.append(f"{name} is {size!r}, not a whole number from 1 to {largest:,}")
    if not problems:
        if values["n_embd"] % values["n_head"]:
            problems.append(f"n_head {values['n_head']} does not divide n_embd {values['n_embd']}")
        if values.get("n_inner") not in (None, 4 * values["n_embd"]):
            problems.append(f"n_inner is {values['n_inner']!r}, not 4 times n_embd ({4 * values['n_embd']})")
        if values.get("n_ctx", values["n_positions"]) != values["n_positions"]:
            problems.append(f"n_ctx is {values['n_ctx']!r}, n_positions {values['n_positions']}")
    for name, allowed in _GPT2_VALUES.items():
        if values.get(name, allowed[0]) not in allowed:
            problems.append(f"{name} is {values[name]!r}, not {' or '.join(map(repr, allowed))}")
    dropouts = [values.get(name, 0.1) for name in _DROPOUTS]
    if any(type(rate) not in (int, float) or not 0 <= rate < 1 for rate in dropouts) or len(set(dropouts)) > 1:
        problems.append(f"{', '.join(_DROPOUTS)} are {dropouts}, not one number from 0 to below 1")
    if problems:
        raise CheckpointError(
            f"{path} does not describe a GPT-2 that can be run here: {_some(problems)}.",
            "Choose a model that was saved by this program, or an unchanged GPT-2.",
        )
    return GPT2Config(
        vocab_size=values["vocab_size"],
        context_length=values["n_positions"],
        n_layer=values["n_layer"],
        n_head=values["n_head"],
        n_embd=values["n_embd"],
        dropout=float(dropouts[0]),
    )


def load_model(folder: Path, device: torch.device | str = "cpu", dropout: float | None = None) -> GPT2:
    """The model in a folder that this program or transformers wrote, in 32-bit floats and evaluation mode.

    Names with and without the prefix `transformer.` are read, a second copy of the embedding as `lm_head.weight`
    is compared with it, and the causal masks of old files are skipped. Memory is only taken once names, shapes
    and the size of the file fit the configuration.

    Args:
        folder: has `config.json` and `model.safetensors`.
        device: where the model shall be.
        dropout: for further training; else as `config.json` says.

    Raises:
        CheckpointError: a file is missing or damaged, or what it holds is not this GPT-2; all that differs is named.
    """
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_FILE}.", "Choose the folder of a run or of a GPT-2 model.")
    config = config_from_hf(read_json(config_path), config_path)
    if dropout is not None:
        config = replace(config, dropout=dropout)

    path = _weight_file(folder)
    weights, size = parameters(config), path.stat().st_size
    if 2 * weights > size:  # two bytes a weight, at the least
        raise CheckpointError(
            f"{path} has {size:,} bytes, too few for the {weights:,} weights that {CONFIG_FILE} describes.",
            "Copy the folder again, or choose another checkpoint.",
        )
    with torch.device("meta"):  # shapes without memory
        model = GPT2(config)
    try:
        with safe_open(path, framework="pt") as file:
            keys = _match(file, model, path)
            model.to_empty(device=device)
            _fill(model, file, keys, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}.", "Copy the folder again, or choose another checkpoint."
        ) from error
    return model.eval()


def _weight_file(folder: Path) -> Path:
    """The file of weights; if there is none of the right kind, what to do about that."""
    path = folder / WEIGHT_FILE
    if path.is_file():
        return path
    convert = (
        'Convert it once: python -c "from transformers import GPT2LMHeadModel; '
        f"GPT2LMHeadModel.from_pretrained('{folder}').save_pretrained('{folder}-safe', max_shard_size='50GB')\""
    )
    if (folder / "pytorch_model.bin").is_file():
        raise CheckpointError(
            f"{folder} has its weights only as a pickle, pytorch_model.bin, which could run any program when opened.",
            f"If you trust it: {convert[0].lower()}{convert[1:]}",
        )
    if (folder / f"{WEIGHT_FILE}.index.json").is_file():
        raise CheckpointError(f"{folder} has its weights in several files; one {WEIGHT_FILE} is read.", convert)
    raise CheckpointError(f"{folder} has no {WEIGHT_FILE}.", "Choose the folder of a run or of a GPT-2 model.")


def _match(file: Any, model: GPT2, path: Path) -> dict[str, str]:
    """Our names → the file's names, once they agree in names, shapes and number formats."""
    expected = {
        name: list(tensor.t().shape if name.endswith(_TRANSPOSED) else tensor.shape)
        for name, tensor in model.state_dict().items()
    }
    expected[_OUTPUT] = expected["wte.weight"]
    keys: dict[str, str] = {}
    problems = []
    for key in file.keys():  # noqa: SIM118 (no mapping: an open file)
        name = key.removeprefix(_PREFIX)
        if _OLD_BUFFER.fullmatch(name):
            continue
        tensor = file.get_slice(key)
        if name not in expected:
            problems.append(f"{key} is no weight of this GPT-2")
        elif name in keys:
            problems.append(f"{key} is there twice, also as {keys[name]}")
        elif tensor.get_shape() != expected[name]:
            problems.append(f"{key} has shape {tensor.get_shape()}, not {expected[name]}")
        elif tensor.get_dtype() not in _FLOATS:
            problems.append(f"{key} has numbers of kind {tensor.get_dtype()}, not {', '.join(_FLOATS)}")
        keys[name] = key
    problems += [f"{name} is missing" for name in expected if name not in keys and name != _OUTPUT]
    if problems:
        raise CheckpointError(
            f"{path} does not fit the model in {CONFIG_FILE}: {_some(problems)}.",
            "Choose another checkpoint, or the configuration that belongs to these weights.",
        )
    return keys


@torch.no_grad()
def _fill(model: GPT2, file: Any, keys: dict[str, str], path: Path) -> None:
    """Copy the file's tensors into the model, and refuse numbers that are none."""
    broken = []
    for name, parameter in model.named_parameters():
        tensor: Tensor = file.get_tensor(keys[name])
        if not torch.isfinite(tensor).all():
            broken.append(keys[name])
        parameter.copy_(tensor.t() if name.endswith(_TRANSPOSED) else tensor)
    if broken:
        raise CheckpointError(
            f"{path} has NaN or infinity in {_some(broken)}: the training that wrote it had diverged.",
            "Choose an earlier checkpoint, and train with a lower learning rate.",
        )
    if _OUTPUT in keys and not torch.equal(file.get_tensor(keys[_OUTPUT]), file.get_tensor(keys["wte.weight"])):
        raise CheckpointError(
            f"{path}: {keys[_OUTPUT]} differs from {keys['wte.weight']}; in GPT-2 they are one matrix.",
            "Choose a model whose output matrix is tied to its embedding.",
        )


def _some(items: list[str], most: int = 8) -> str:
    """The first items of a list as one phrase, and how many there are beyond."""
    more = f"; and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
