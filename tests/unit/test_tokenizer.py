"""The three tokenizers: every text comes back, nothing in a text is special, ids are GPT-2's."""

import itertools
import json
import re
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2.errors import ConfigError, UserError
from gpt2.tokenizer import bpe, gpt2
from gpt2.tokenizer.base import END_OF_TEXT, fingerprint_of
from gpt2.tokenizer.bpe import BytePairTokenizer, pieces, train_bpe
from gpt2.tokenizer.char import CharTokenizer, train_char
from gpt2.tokenizer.layout import unspell
from gpt2.tokenizer.store import tokenizer_from_spec

TEXT = "It's the first day, and we'll see:\n\tthe snow, the snow, 1,234 flakes!\n\n  Größe 雪 🙂\r\n" * 3
SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
NOT_SPACES = "\x1c\x1f\u180e\u200b\ufeff"
RUNS = train_bpe([space * length for space in SPACES for length in range(1, 40)], 1000)
"""It has a token for nearly every run of one white space, so that its ids tell where a text was split."""


@pytest.fixture(scope="module")
def gpt2_bpe() -> BytePairTokenizer:
    return gpt2.gpt2_tokenizer()


@pytest.fixture(scope="module")
def tokenizers(gpt2_bpe):
    return [gpt2_bpe, train_bpe([TEXT], 300), train_char([TEXT])]


def test_gpt2_gives_the_ids_that_gpt2_was_trained_on(gpt2_bpe):
    assert gpt2_bpe.encode("Hello world").tolist() == [15496, 995]
    assert gpt2_bpe.encode(" Hello world").tolist() == [18435, 995]
    assert gpt2_bpe.encode("\n\n").tolist() == [628]
    assert gpt2_bpe.encode("Hello").dtype == np.uint32
    assert (gpt2_bpe.vocab_size, gpt2_bpe.end_of_text) == (50257, 50256)


def test_gpt2_ids_are_those_of_openais_encoder_file(gpt2_bpe):
    spec = gpt2.importlib.util.find_spec(gpt2.CARRIER)
    with open(f"{spec.submodule_search_locations[0]}/data/encoder.json", encoding="utf-8") as file:
        encoder = json.load(file)
    assert encoder.pop(END_OF_TEXT) == gpt2_bpe.end_of_text
    assert {unspell(spelling): i for spelling, i in encoder.items()} == {t: i for i, t in enumerate(gpt2_bpe.tokens)}


def test_merges_are_recovered_from_the_tokens_alone(gpt2_bpe):
    assert BytePairTokenizer("gpt2", gpt2_bpe.tokens).merges == gpt2_bpe.merges


@settings(deadline=None)
@given(text=st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(tokenizers, text):
    for tokenizer in tokenizers[:2]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids.tolist()) == text.encode()
        assert (ids < tokenizer.end_of_text).all()


@settings(deadline=None)
@given(text=st.text(st.sampled_from(sorted(set(TEXT)))))
def test_text_of_known_characters_comes_back(tokenizers, text):
    ids = tokenizers[2].encode(text)
    assert tokenizers[2].decode(ids) == text
    assert len(ids) == len(text)


def test_a_character_that_the_text_did_not_have_is_unknown():
    tokenizer = train_char(["ba", "\ufffdc"])
    assert tokenizer.encode("cab").tolist() == [2, 0, 1]
    assert tokenizer.encode("z\U0010ffff\ud800").tolist() == [3, 3, 3]
    assert tokenizer.decode([3, 0, 4]) == "\ufffda"
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (5, 4)


def test_the_spelling_of_the_mark_is_plain_text_and_the_mark_gives_no_text(tokenizers):
    for tokenizer in [*tokenizers, train_bpe([END_OF_TEXT * 9], 300), train_char([END_OF_TEXT])]:
        assert tokenizer.end_of_text not in tokenizer.encode(f"a{END_OF_TEXT}b").tolist()
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        assert tokenizer.decode([tokenizer.end_of_text]) == ""
        assert tokenizer.decode_bytes([tokenizer.end_of_text]) == b""
        assert tokenizer.encode("").tolist() == []


def test_surrogates_are_joined_or_replaced(tokenizers):
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer.encode("s\ud800s")) == "s\ufffds"
        assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "🙂"
    assert train_bpe(["\ud83d\ude42 \ud800 ab ab"], 300).vocab_size > 257
    assert "\ufffd" not in train_char(["a\ud800"]).characters


def test_decoded_bytes_may_end_within_a_character(gpt2_bpe):
    ids = gpt2_bpe.encode("🙂").tolist()
    assert len(ids) > 1
    assert gpt2_bpe.decode(ids[:1]) == "\ufffd"
    assert b"".join(gpt2_bpe.decode_bytes([i]) for i in ids) == "🙂".encode()


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from(f"ab1'.{SPACES}{NOT_SPACES}"), max_size=60) | st.text("a \n", max_size=40),
    size=st.integers(1, 9),
)
@example(text="a\n\n\n\n", size=1)
def test_pieces_have_the_ids_of_the_whole(text, size):
    # Long runs begin at 3 characters here, so that short texts go through what a million characters would.
    long_space = re.compile(bpe._LONG_SPACE.pattern.replace(str(bpe.PIECE), "3"))
    cut = list(pieces(text, size, long_space))
    assert "".join(cut) == text
    ids = list(itertools.chain.from_iterable(RUNS.encode(piece).tolist() for piece in cut))
    assert ids == RUNS.encode(text).tolist()


@pytest.mark.parametrize(
    "text", ["a" * 2**20, " " * 2**20 + "a", " \n" * 2**20 + "a", "\n" * 2**20, "x" + " " * 2**20 + "y" + " " * 2**20]
)
def test_a_megabyte_without_words_is_encoded_in_time(gpt2_bpe, text):
    start = time.process_time()  # however busy the machine is
    ids = gpt2_bpe.encode(text)
    assert time.process_time() - start < 20
    assert gpt2_bpe.decode_bytes(ids) == text.encode()


def test_a_trained_bpe_has_the_ids_asked_for_or_what_the_text_gave():
    assert train_bpe([TEXT], 280).vocab_size == 280
    short = train_bpe(["abc abc"], 5000)
    assert short.name == "bpe:5000"
    assert 257 < short.vocab_size < 300
    assert train_bpe([], 300).vocab_size == 257
    assert train_bpe([], 257).encode("ab").tolist() == [97, 98]


def test_training_twice_gives_the_same_tokenizer_and_other_text_another():
    first, again = train_bpe([TEXT, "x y"], 300), train_bpe(iter([TEXT, "x y"]), 300)
    assert first.tokens == again.tokens
    assert first.fingerprint() == again.fingerprint() != train_bpe([TEXT.upper()], 300).fingerprint()
    assert train_char(["ab"]).fingerprint() == CharTokenizer("ab").fingerprint() != CharTokenizer("abc").fingerprint()
    assert fingerprint_of("x", [b"a", b"bc"]) != fingerprint_of("x", [b"ab", b"c"])


def test_training_survives_a_megabyte_of_one_letter_and_of_space():
    tokenizer = train_bpe(["a" * 2**20, " " * 2**20 + "b", "\n" * 2**20 + "b"], 400)
    assert max(map(len, tokenizer.tokens)) == bpe.LONGEST
    assert len(tokenizer.merges) == len(tokenizer.tokens) - 256


def test_a_name_makes_its_tokenizer_and_only_training_reads_text():
    def none():
        raise AssertionError("text was read")

    assert tokenizer_from_spec("gpt2", none).name == "gpt2"
    assert tokenizer_from_spec("char", lambda: iter(["ba"])).encode("ab").tolist() == [0, 1]
    assert tokenizer_from_spec("bpe:260", lambda: iter([TEXT])).vocab_size == 260
    for wrong in ("auto", "bpe:", "bpe:12", "bpe:-300", "word"):
        with pytest.raises(ConfigError, match=re.escape(wrong)):
            tokenizer_from_spec(wrong, lambda: iter([TEXT]))


def test_a_missing_or_altered_vocabulary_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(gpt2, "CARRIER", "no_such_package_here")
    with pytest.raises(UserError, match="no_such_package_here"):
        gpt2.gpt2_tokenizer()
    package = tmp_path / "altered_carrier"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gpt2, "CARRIER", "altered_carrier")
    with pytest.raises(UserError, match="cannot be read"):
        gpt2.gpt2_tokenizer()
    (package / "data" / "vocab.bpe").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match="sha256"):
        gpt2.gpt2_tokenizer()
