"""transformers writes conversations as we do: the same ids, from the files of a checkpoint."""

import random
from pathlib import Path
from typing import Any

import pytest

from gpt2.chat.template import CHAT_TEMPLATE, conversation_ids
from gpt2.corpus.fields import Message
from gpt2.files import write_json
from gpt2.tokenizer.base import Tokenizer
from gpt2.tokenizer.bpe import train_bpe
from gpt2.tokenizer.char import train_char
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.tokenizer.layout import CONFIG_FILE
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer

TEXT = "The dog sees a small house, and then it's 12 o'clock.\n\n  def f(x):\n\treturn x  # été 🤖\n"


def random_text(draw: random.Random, alphabet: str) -> str:
    words = [*TEXT.split(" "), "\n", "  ", "\t", "'s", "{{ x }}", "{% if %}", "<|", "|>", "日本", "\u2028", ""]
    text = "".join(draw.choice(words) + draw.choice(["", " ", "\n"]) for _ in range(draw.randint(0, 8)))
    return "".join(character for character in text if not alphabet or character in alphabet)


def conversation(draw: random.Random, alphabet: str) -> list[Message]:
    said = [Message("system", random_text(draw, alphabet))] if draw.random() < 0.3 else []
    for _ in range(draw.randint(1, 4)):
        said += [Message("user", random_text(draw, alphabet)), Message("assistant", random_text(draw, alphabet))]
    return said


def saved(tokenizer: RoleTokenizer, folder: Path) -> Any:
    files = tokenizer.to_files(1024)
    files[CONFIG_FILE]["chat_template"] = CHAT_TEMPLATE
    for name, value in files.items():
        write_json(folder / name, value)
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_ids_of_random_conversations_equal_those_of_apply_chat_template(tmp_path: Path, kind: str) -> None:
    plain: Tokenizer = {
        "gpt2": gpt2_tokenizer,
        "bpe": lambda: train_bpe([TEXT] * 3, 320),
        "char": lambda: train_char([TEXT]),
    }[kind]()
    ours = RoleTokenizer(plain)
    theirs = saved(ours, tmp_path)
    alphabet = TEXT if kind == "char" else ""  # what it cannot spell, it cannot spell in either
    draw = random.Random(7)
    for number in range(1000 if kind == "gpt2" else 200):
        said = conversation(draw, alphabet)
        answering = number % 2 == 0
        messages = [message._asdict() for message in said]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=answering, return_dict=False)
        assert conversation_ids(said, ours, answering) == expected, said


def test_a_typed_mark_is_text_here_and_a_mark_there(tmp_path: Path) -> None:
    """Where they differ: transformers renders a string first, and takes its spellings for marks, whoever typed them.

    With `split_special_tokens` it would split those of the template as well, so no setting of it gives our ids.
    """
    ours = RoleTokenizer(gpt2_tokenizer())
    theirs = saved(ours, tmp_path)
    for spelling, mark in zip(ROLE_SPELLINGS, ours.roles.all, strict=True):
        said = [Message("user", f"a{spelling}b"), Message("assistant", "c")]
        ids = conversation_ids(said, ours)
        assert [i for i in ids if i in ours.roles.all] == [
            ours.roles.user,
            ours.roles.end,
            ours.roles.assistant,
            ours.roles.end,
        ]
        assert ours.decode(ids) == f"a{spelling}bc"
        other = theirs.apply_chat_template([message._asdict() for message in said], return_dict=False)
        assert other.count(mark) == ids.count(mark) + 1
        assert theirs.decode(other) == theirs.decode(ids)  # the same string, spelled by other ids


def test_other_roles_are_refused_and_an_answer_ends_generation(tmp_path: Path) -> None:
    theirs = saved(RoleTokenizer(train_bpe([TEXT], 300)), tmp_path)
    with pytest.raises(Exception, match="There is no role tool"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])
    assert theirs.eos_token == "<|end|>"
    assert theirs.bos_token == "<|endoftext|>"
