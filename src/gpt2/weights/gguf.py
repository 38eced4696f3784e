"""A model as one GGUF file, which llama.cpp reads: its sizes, its vocabulary, its form of a conversation, its weights.

The format is that of ggml's docs/gguf.md, version 3: a head of keys and values, a list of tensors, then their numbers.
Weights stay as they are, in 32-bit floats; llama.cpp's own tools make them smaller.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt2.errors import ConfigError
from gpt2.files import atomic_open
from gpt2.model.gpt2 import GPT2
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.layout import CONFIG_FILE, TOKENIZER_FILE

MAGIC = b"GGUF"
"""Every such file begins with it."""
ALIGNMENT = 32
"""Every tensor begins at a multiple of so many bytes."""
_NORMAL, _CONTROL = 1, 3  # kinds of tokens: text, and marks that no text spells
_F32 = 0  # the kind of a tensor

_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
"""Parts of a model: as OpenAI called them → as llama.cpp does."""


def write_gguf(path: Path, model: GPT2, tokenizer: Tokenizer, name: str, chat_template: str | None) -> None:
    """Write a model as a GGUF file, whole or not at all.

    Args:
        path: of the file.
        model: on the CPU, in 32-bit floats.
        tokenizer: its own.
        name: of the model, for whoever lists it.
        chat_template: how it wants conversations written, in Jinja; None: it knows none.

    Raises:
        ConfigError: its tokenizer is none that llama.cpp knows.
        OSError: the disk is full or cannot be written.
    """
    values = {**_sizes(model, name), **_vocabulary(tokenizer, model.config.context_length)}
    if chat_template is not None:
        values["tokenizer.chat_template"] = chat_template
    tensors = list(_tensors(model, tokenizer.vocab_size))
    head = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(values))]
    head += [_text(key) + _typed(value) for key, value in values.items()]
    place = 0
    for key, tensor in tensors:
        shape = tensor.shape[::-1]  # the axis whose numbers lie side by side comes first
        head.append(_text(key) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _F32, place))
        place += _padded(tensor.nbytes)
    with atomic_open(path) as file:
        file.write(_filled(b"".join(head)))
        for _, tensor in tensors:
            file.write(_filled(tensor.detach().contiguous().numpy().astype("<f4", copy=False).tobytes()))


def _sizes(model: GPT2, name: str) -> dict[str, Any]:
    config = model.config
    return {
        "general.architecture": "gpt2",
        "general.name": name,
        "general.file_type": 0,  # all in 32-bit floats
        "gpt2.context_length": config.context_length,
        "gpt2.embedding_length": config.n_embd,
        "gpt2.feed_forward_length": 4 * config.n_embd,
        "gpt2.block_count": config.n_layer,
        "gpt2.attention.head_count": config.n_head,
        "gpt2.attention.layer_norm_epsilon": 1e-5,
    }


def _vocabulary(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    """What `transformers` is told in two files. GPT-2's split of text into words is one that llama.cpp has by name."""
    files = tokenizer.to_files(context_length)
    layout, config = files[TOKENIZER_FILE], files[CONFIG_FILE]
    if layout["model"]["type"] != "BPE":
        raise ConfigError(
            f"llama.cpp knows no tokenizer such as {tokenizer.name}: its ids are whole characters.",
            "Train with --tokenizer gpt2 or bpe:N.",
        )
    marks = {mark["content"]: mark["id"] for mark in layout["added_tokens"]}
    ids = layout["model"]["vocab"] | marks
    spellings = sorted(ids, key=ids.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": spellings,
        "tokenizer.ggml.token_type": [_CONTROL if spelling in marks else _NORMAL for spelling in spellings],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in layout["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": ids[config["bos_token"]],
        "tokenizer.ggml.eos_token_id": ids[config["eos_token"]],
        "tokenizer.ggml.add_bos_token": False,
    }


def _tensors(model: GPT2, ids: int) -> Iterator[tuple[str, Tensor]]:
    """Weights under llama.cpp's names; of the embedding the rows that have an id. It is the output matrix, too."""
    for name, tensor in model.state_dict().items():
        block, part, kind = re.fullmatch(r"(?:h\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()  # pyright: ignore
        before = "" if block is None else f"blk.{block}."
        yield f"{before}{_NAMES[part]}.{kind}", tensor[:ids] if part == "wte" else tensor


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Any) -> bytes:
    """A value behind the number of its type."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
        case _:  # texts
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _filled(data: bytes) -> bytes:
    return data.ljust(_padded(len(data)), b"\0")
