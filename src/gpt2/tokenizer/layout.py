"""How a tokenizer is spelled in the files that `transformers` reads; both directions of that spelling begin here."""

from typing import Any

from gpt2.tokenizer.base import END_OF_TEXT

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
NAME_KEY = "gpt2_from_scratch_name"
"""Where tokenizer_config.json keeps the name that the command line knows; transformers carries it along unread."""

# GPT-2 spells each byte as one visible character: itself where Latin-1 prints it, else the next one from U+0100 on.
# The order matters too: GPT-2's first 256 ids are the bytes in just this order.
_VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_HIDDEN = [byte for byte in range(256) if byte not in _VISIBLE]
BYTE_SPELLING: dict[int, str] = {byte: chr(byte) for byte in _VISIBLE}
BYTE_SPELLING |= {byte: chr(256 + position) for position, byte in enumerate(_HIDDEN)}
_SPELLED_BYTE = {spelling: byte for byte, spelling in BYTE_SPELLING.items()}


def spell(token: bytes) -> str:
    """Bytes in GPT-2's visible alphabet: b" the" → "Ġthe"."""
    return "".join([BYTE_SPELLING[byte] for byte in token])


def unspell(spelling: str) -> bytes:
    """The bytes behind GPT-2's visible alphabet: "Ġthe" → b" the".

    Raises:
        KeyError: a character outside that alphabet.
    """
    return bytes([_SPELLED_BYTE[character] for character in spelling])


def added_token(identifier: int, spelling: str) -> dict[str, Any]:
    """An entry of tokenizer.json for an id that no merging of text gives."""
    as_it_is = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": identifier, "content": spelling, **as_it_is, "special": True}


def tokenizer_files(
    name: str,
    end_of_text: int,
    context_length: int,
    *,
    model: dict[str, Any],
    pre_tokenizer: dict[str, Any],
    decoder: dict[str, Any],
    config: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """The two files around a model: tokenizer.json, and tokenizer_config.json with the keys of `config` added."""
    return {
        TOKENIZER_FILE: {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(end_of_text, END_OF_TEXT)],
            "normalizer": None,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        },
        CONFIG_FILE: {
            "model_max_length": context_length,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
            **config,
            NAME_KEY: name,
        },
    }
