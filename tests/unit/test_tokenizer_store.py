"""Tokenizer → files → tokenizer, and the same files read by transformers: the same ids everywhere."""

import json
import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from gpt2.errors import CheckpointError
from gpt2.files import write_json
from gpt2.tokenizer.base import END_OF_TEXT
from gpt2.tokenizer.bpe import train_bpe
from gpt2.tokenizer.char import train_char
from gpt2.tokenizer.gpt2 import gpt2_tokenizer
from gpt2.tokenizer.layout import spell
from gpt2.tokenizer.store import load_tokenizer

TRICKY = [
    "Hello world",
    " leading and trailing ",
    "It's we'll they're I've I'm he'd don't 'S 'LL",
    "tabs\tand\t\ttabs, lines\n\n\nand\r\nreturns\r",
    "runs   of      spaces \n  \t then x   ",
    "emoji 🙂👩‍👩‍👧🇫🇷 and accents: é é ñ",
    "漢字かな交じり文、한국어 ไทย עברית",
    "1234567890 3.14 1,000 ½ ² Ⅷ",
    "\x00\x01\x1c\x1f\x7f\x85\xa0\u180e\u200b\u3000\ufeff\ufffd \ufffd",
    "<|endoftex|> <unk> [UNK] <s> Ġ Ċ ĠĠ",
    "def f(x):\n    return {'a': [x] * 3}  # ok\n",
    "",
]


@pytest.fixture(scope="module")
def tokenizers():
    text = "\n".join(TRICKY[:7]) * 3
    return {"gpt2": gpt2_tokenizer(), "bpe": train_bpe([text], 400), "char": train_char([text])}


def store(tokenizer, folder, **changes):
    for name, value in tokenizer.to_files(256).items():
        write_json(folder / name, value)
    if changes:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        write_json(path, {**content, **changes, "model": {**content["model"], **changes.get("model", {})}})
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_a_stored_tokenizer_loads_as_the_same(kind, tokenizers, tmp_path):
    tokenizer = tokenizers[kind]
    loaded = load_tokenizer(store(tokenizer, tmp_path, a_key_from_the_future=1))
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert (loaded.name, loaded.vocab_size, loaded.end_of_text) == (
        tokenizer.name,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
    )
    for text in TRICKY:
        assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert loaded.to_files(256) == tokenizer.to_files(256)


@pytest.mark.parametrize("beside_a_model", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_transformers_reads_the_same_ids(kind, beside_a_model, tokenizers, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tokenizers[kind]
    store(tokenizer, tmp_path)
    if beside_a_model:  # in a checkpoint transformers also looks at the model's kind
        write_json(tmp_path / "config.json", {"model_type": "gpt2", "vocab_size": tokenizer.vocab_size})
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TRICKY:
        ids = tokenizer.encode(text).tolist()
        assert theirs(text)["input_ids"] == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text
    assert theirs(END_OF_TEXT)["input_ids"] == [tokenizer.end_of_text]
    assert theirs.model_max_length == 256


@pytest.mark.parametrize("kind", ["gpt2", "bpe", "char"])
def test_what_transformers_saves_again_loads_here(kind, tokenizers, tmp_path):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(store(tokenizers[kind], tmp_path))
    theirs.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint() == tokenizers[kind].fingerprint()
    assert load_tokenizer(tmp_path / "again").name == tokenizers[kind].name


def test_a_gpt2_folder_of_transformers_loads_as_gpt2(tokenizers, tmp_path):
    from transformers import GPT2TokenizerFast

    gpt2 = tokenizers["gpt2"]
    vocab = {spell(token): i for i, token in enumerate(gpt2.tokens)} | {END_OF_TEXT: 50256}
    GPT2TokenizerFast(vocab=vocab, merges=[(spell(a), spell(b)) for a, b in gpt2.merges]).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.name == "gpt2"
    assert loaded.fingerprint() == gpt2.fingerprint()


def test_the_ids_need_tokenizer_json_alone_and_merges_may_be_strings(tokenizers, tmp_path):
    merges = [f"{spell(left)} {spell(right)}" for left, right in tokenizers["bpe"].merges]
    store(tokenizers["bpe"], tmp_path, model={"merges": merges})
    (tmp_path / "tokenizer_config.json").write_text("{broken")
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizers["bpe"].fingerprint()
    assert loaded.name == f"bpe:{loaded.vocab_size}"


def test_a_folder_without_a_tokenizer_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '"x"', "[" * 100_000, "{}", '{"model": 3}', '{"model": {"type": "BPE"}}']
)
def test_a_file_that_is_no_tokenizer_is_refused(content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def _bpe_damage():
    def vocab(change):
        return lambda model: {"model": {"vocab": change(model["vocab"])}}

    def swap(v):
        first, second = list(v)[300:302]
        return {**v, first: v[second], second: v[first]}

    def merges(change):
        return lambda model: {"model": {"merges": change(list(model["merges"]))}}

    return {
        "a hole in the ids": vocab(lambda v: {k: i for k, i in v.items() if i != 300}),
        "an id twice": vocab(lambda v: {**v, next(iter(v)): 300}),
        "an id far away": vocab(lambda v: {**v, next(iter(v)): 10**9}),
        "an id that is text": vocab(lambda v: {**v, next(iter(v)): "1"}),
        "an id that is a list": vocab(lambda v: {**v, next(iter(v)): []}),
        "a letter outside the alphabet": vocab(lambda v: {("漢" if i == 300 else k): i for k, i in v.items()}),
        "tokens exchanged": vocab(swap),
        "a merge missing": merges(lambda m: m[:-1]),
        "merges exchanged": merges(lambda m: [m[1], m[0], *m[2:]]),
        "a merge of three": merges(lambda m: [[*m[0], "a"], *m[1:]]),
        "a merge of numbers": merges(lambda m: [[1, 2], *m[1:]]),
        "no merges": lambda model: {"model": {"merges": None}},
        "another kind": lambda model: {"model": {"type": "Unigram"}},
        "dropout": lambda model: {"model": {"dropout": 0.1}},
        "a normalizer": lambda model: {"normalizer": {"type": "NFC"}},
        "another split": lambda model: {"pre_tokenizer": {"type": "Whitespace"}},
        "a space put before": lambda model: {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        "no mark": lambda model: {"added_tokens": []},
        "another mark": lambda model: {"added_tokens": [{"id": len(model["vocab"]) - 1, "content": "</s>"}]},
        "the mark elsewhere": lambda model: {"added_tokens": [{"id": 5, "content": END_OF_TEXT}]},
    }


@pytest.mark.parametrize("damage", _bpe_damage())
def test_a_damaged_bpe_is_refused(damage, tokenizers, tmp_path):
    model = tokenizers["bpe"].to_files(256)["tokenizer.json"]["model"]
    store(tokenizers["bpe"], tmp_path, **_bpe_damage()[damage](model))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer that can be used here"):
        load_tokenizer(tmp_path)


def test_a_merge_that_gives_the_token_by_another_pair_is_refused(tmp_path):
    tokenizer = train_bpe(["abc " * 50 + "ab " * 50 + "abcd " * 20], 300)
    merges = [[spell(left), spell(right)] for left, right in tokenizer.merges]
    at = next(i for i, (left, right) in enumerate(merges) if len(left + right) == 3)
    joined = "".join(merges[at])
    other = [joined[:1], joined[1:]] if len(merges[at][0]) == 2 else [joined[:2], joined[2:]]
    store(tokenizer, tmp_path, model={"merges": [*merges[:at], other, *merges[at + 1 :]]})
    with pytest.raises(CheckpointError, match="not how its token is reached"):
        load_tokenizer(tmp_path)


def test_gpt2s_merges_beside_other_ids_are_refused(tokenizers, tmp_path):
    vocab = dict(tokenizers["gpt2"].to_files(256)["tokenizer.json"]["model"]["vocab"])
    vocab["Ġthe"], vocab["Ġa"] = vocab["Ġa"], vocab["Ġthe"]
    store(tokenizers["gpt2"], tmp_path, model={"vocab": vocab})
    with pytest.raises(CheckpointError, match="does not give token"):
        load_tokenizer(tmp_path)


def test_a_mark_that_is_not_the_last_id_is_refused(tmp_path):
    tokenizer = train_char(["ab"])
    mark = {"id": 2, "content": END_OF_TEXT}
    store(tokenizer, tmp_path, added_tokens=[mark], model={"vocab": _characters("a", "b", END_OF_TEXT, "\ufffd")})
    with pytest.raises(CheckpointError, match="not the last id"):
        load_tokenizer(tmp_path)


def _characters(*spellings):
    return {spelling: i for i, spelling in enumerate(spellings)}


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"vocab": _characters("b", "a", "\ufffd", END_OF_TEXT)}},
        {"model": {"vocab": _characters("a", "bc", "\ufffd", END_OF_TEXT)}},
        {"model": {"vocab": _characters("a", "\ufffd", "b", END_OF_TEXT)}},
        {"model": {"unk_token": "a"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_a_damaged_character_vocabulary_is_refused(change, tmp_path):
    store(train_char(["ab"]), tmp_path, **change)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_lone_surrogate_in_a_character_vocabulary_is_refused(tmp_path):
    content = train_char(["ab"]).to_files(8)["tokenizer.json"]
    content["model"]["vocab"] = _characters("a", "\ud800", "\ufffd", END_OF_TEXT)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no single character"):
        load_tokenizer(tmp_path)
