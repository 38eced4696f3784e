"""No text that a user can write becomes a special token, and every text comes back as it was."""

import random

import pytest
from tests.conftest import make_text

from gpt2.chat.template import ChatFormat
from gpt2.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2.tokenizer.bpe import BytePairTokenizer, train_bpe
from gpt2.tokenizer.char import train_char
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer

SPELLINGS = (
    END_OF_TEXT, "<|endoftext|>" * 2, "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|endofprompt|>", "<s>", "</s>",
    "[INST]", "<unk>", "<pad>", "[CLS]", *ROLE_SPELLINGS, "<|end", "oftext|>", "<|endoftext", "Ġ<|endoftext|>",
)  # fmt: skip
OTHERS = (
    " ",
    "\n",
    "\r\n",
    "\0",
    "a",
    "word",
    "naïve",
    "é",
    "☃",
    "日本",
    "👩‍👩‍👧",
    "\u200b",
    "\ufeff",
    "'s",
    "12",
    "<",
    "|",
    ">",
)


def texts(count: int) -> list[str]:
    """Random texts; every one holds a spelling of a special token, whole or broken."""
    draw = random.Random(11)
    made = []
    for _ in range(count):
        parts = draw.choices(OTHERS, k=draw.randint(0, 6)) + draw.choices(SPELLINGS, k=draw.randint(1, 3))
        draw.shuffle(parts)
        made.append("".join(parts))
    return made


@pytest.fixture(scope="module")
def tokenizers() -> list[Tokenizer]:
    alphabet = "".join(SPELLINGS + OTHERS)
    return [
        gpt2_tokenizer(),
        RoleTokenizer(gpt2_tokenizer()),
        train_bpe(iter([make_text(3000), END_OF_TEXT * 500]), 400),
        BytePairTokenizer("bpe:257", [bytes([byte]) for byte in range(256)]),
        train_char(iter([alphabet])),
    ]


def check(tokenizers: list[Tokenizer], count: int) -> None:
    chat = ChatFormat.from_template("Q: {question}\nA: {answer}")
    for tokenizer in tokenizers:
        plain_ids = tokenizer.plain.vocab_size if isinstance(tokenizer, RoleTokenizer) else tokenizer.vocab_size
        for number, text in enumerate(texts(count)):
            ids = tokenizer.encode(text).tolist()
            assert tokenizer.end_of_text not in ids, (tokenizer.name, text)
            assert max(ids) < plain_ids, (tokenizer.name, text)
            assert tokenizer.decode(ids) == text
            if number % 100 == 0 and tokenizer.name != "char":  # its text had no template
                turn = chat.turn(tokenizer, text, text, first=True) + chat.prompt(tokenizer, text, first=False)
                assert turn.count(tokenizer.end_of_text) == 2  # where the program set it
                assert tokenizer.decode(turn) == f"Q: {text}\nA: {text}Q: {text}\nA:"


def test_no_spelling_becomes_a_special_id(tokenizers: list[Tokenizer]) -> None:
    check(tokenizers, 2_000)


@pytest.mark.slow
def test_a_hundred_thousand_times(tokenizers: list[Tokenizer]) -> None:
    check(tokenizers, 100_000)
