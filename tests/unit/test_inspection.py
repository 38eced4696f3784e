"""A look inside shows the model's own numbers, and where a text came from."""

import base64
import copy
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.corpus.shards import ShardWriter, TokenShards
from gpt2.files import write_json
from gpt2.inspection import passages
from gpt2.inspection.document import html
from gpt2.inspection.lens import logit_lens, surprise
from gpt2.inspection.passages import closest, verbatim_spans
from gpt2.inspection.trace import trace
from gpt2.inspection.view import MOST_ATTENTION, look, most_tokens, origins, softmax_of, spell
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.precision import in_precision
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.tokenizer.roles import ROLE_SPELLINGS, RoleTokenizer

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
IDS = list(b"what it looks at, and why")


@pytest.fixture(scope="module")
def model() -> GPT2:
    made = GPT2(GPT2Config(vocab_size=260, context_length=32, n_layer=3, n_head=4, n_embd=32, dropout=0.3))
    generator = torch.Generator().manual_seed(3)
    made.init_weights(generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator))
    return made


def shards_of(folder: Path, documents: list[list[int]]) -> TokenShards:
    with ShardWriter(folder, "train", BYTES.vocab_size, BYTES.end_of_text, "0" * 16) as writer:
        for document in documents:
            writer.add_document(iter([np.array(document, dtype=np.uint32)]))
        entry = writer.close()
    write_json(folder / "MANIFEST.json", {"parts": {"train": entry}})
    return TokenShards(folder, "train")


def test_a_trace_is_of_the_evaluated_model_and_leaves_it_in_training(model: GPT2) -> None:
    model.train()
    first, second = trace(model, IDS), trace(model, IDS)
    assert model.training
    assert torch.equal(first.logits, second.logits)  # no dropout
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.allclose(first.logits, model.eval()(torch.tensor([IDS]))[0], atol=1e-6)
    assert first.attention.shape == (3, 4, len(IDS), len(IDS))
    assert torch.allclose(first.attention.sum(-1), torch.ones(3, 4, len(IDS)))
    assert not first.attention.triu(1).any()


def test_surprise_is_the_loss_of_each_token_and_its_rank(model: GPT2) -> None:
    seen = trace(model, IDS)
    found = surprise(seen)
    expected = F.cross_entropy(seen.logits[:-1], torch.tensor(IDS[1:]), reduction="none")
    assert torch.allclose(found.loss, expected, atol=1e-5)
    order = seen.logits[:-1].argsort(dim=1, descending=True).tolist()
    assert found.rank.tolist() == [row.index(token) for row, token in zip(order, IDS[1:], strict=True)]


def test_the_lens_ends_at_what_the_model_says(model: GPT2) -> None:
    seen = trace(model, IDS)
    lens = logit_lens(model, seen, BYTES.vocab_size, k=7)
    best = seen.logits[:, : BYTES.vocab_size].softmax(-1).topk(7)
    assert lens.ids.shape == lens.probabilities.shape == (4, len(IDS), 7)
    assert torch.equal(lens.ids[-1], best.indices)
    assert torch.allclose(lens.probabilities[-1], best.values, atol=1e-5)
    assert lens.ids.max() < BYTES.vocab_size


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=5),
    st.lists(st.integers(0, 3), max_size=25),
    st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_spans_are_the_longest_that_stand_in_the_training_text(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], text: list[int], least: int
) -> None:
    shards = shards_of(tmp_path_factory.mktemp("spans"), documents)
    corpus = shards.read(0, len(shards)).tolist()

    def stands(part: list[int]) -> bool:
        return any(corpus[place : place + len(part)] == part for place in range(len(corpus) - len(part) + 1))

    expected: list[tuple[int, int]] = []
    for start in range(len(text)):
        stop = max((stop for stop in range(start + 1, len(text) + 1) if stands(text[start:stop])), default=start)
        if stop - start >= least and (not expected or stop > expected[-1][1]):
            expected.append((start, stop))
    found = verbatim_spans(text, shards, least)
    assert [(span.start, span.stop) for span in found] == expected
    for span in found:
        assert corpus[span.place : span.place + span.stop - span.start] == text[span.start : span.stop]


def test_spans_are_found_across_the_borders_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    documents = [draw.integers(0, 256, 50).tolist() for _ in range(20)]
    shards = shards_of(tmp_path, documents)
    text = shards.read(90, 160).tolist()
    expected = verbatim_spans(text, shards, 5)
    assert (expected[0].start, expected[0].stop) == (0, 70)
    for block in (7, 16, 100):
        monkeypatch.setattr(passages, "BLOCK", block)
        assert verbatim_spans(text, shards, 5) == expected
        assert next(one.document for one in closest(documents[13], shards, 2)) == 13


def test_the_nearest_passage_is_by_bm25(tmp_path: Path) -> None:
    documents = [[1, 2, 3, 4], [1, 1, 1, 9, 9, 9, 9, 9], [5, 6, 7], [1, 2, 8, 8, 8, 8]]
    shards = shards_of(tmp_path, documents)
    lengths = [5, 9, 4, 6]  # with the mark behind all but the last
    mean = sum(lengths) / 4

    def score(document: int, asked: list[int]) -> float:
        total = 0.0
        for token in asked:
            holding = sum(token in one for one in documents)
            rarity = np.log(1 + (4 - holding + 0.5) / (holding + 0.5))
            count = documents[document].count(token)
            total += rarity * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths[document] / mean))
        return total

    found = closest([1, 2, 200], shards, 1, most=9)
    expected = sorted(((score(d, [1, 2]), d) for d in range(4) if score(d, [1, 2]) > 0), reverse=True)
    assert [one.document for one in found] == [document for _, document in expected]
    assert [one.score for one in found] == pytest.approx([value for value, _ in expected])
    assert documents[found[0].document] == shards.read(found[0].start, found[0].stop).tolist()[: lengths[0] - 1]


def test_a_view_has_what_the_model_said(model: GPT2) -> None:
    view = json.loads(json.dumps(look(model, BYTES, IDS, written=5)))
    seen = trace(model, IDS)
    assert "".join(token["text"] for token in view["tokens"]) == bytes(IDS).decode()
    assert [token["written"] for token in view["tokens"]] == [False] * (len(IDS) - 5) + [True] * 5
    numbers = np.frombuffer(base64.b64decode(view["attention"]), "<u2").reshape(seen.attention.shape) / 65535
    assert np.abs(numbers - seen.attention.numpy()).max() < 1e-5
    for temperature in (0.5, 1.0, 2.0):
        for place, token in enumerate(view["tokens"]):
            exact = (seen.logits[place, : BYTES.vocab_size].double() / temperature).softmax(-1)
            shares = softmax_of(token, temperature)
            assert [guess for guess, _, _ in token["guesses"]] == exact.topk(len(shares)).indices.tolist()
            assert shares == pytest.approx(exact.topk(len(shares)).values.tolist(), rel=0.005)
    assert len(view["lens"]) == 4
    assert view["tokens"][0]["loss"] is None


def test_of_a_long_text_the_end_is_looked_at(model: GPT2) -> None:
    view = look(model, BYTES, IDS * 3, written=1)
    assert len(view["tokens"]) == 32
    assert "".join(token["text"] for token in view["tokens"]) == (bytes(IDS * 3).decode())[-32:]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_model_of_smaller_weights_shows_nearly_the_same(model: GPT2, precision: str) -> None:
    exact = trace(model.eval(), IDS)
    smaller = in_precision(copy.deepcopy(model), precision)
    seen = trace(smaller, IDS)
    assert {part.dtype for part in (seen.attention, seen.residuals, seen.logits)} == {torch.float32}
    for name, bound in (("attention", 0.1), ("residuals", 0.03), ("logits", 0.03)):
        expected, found = getattr(exact, name), getattr(seen, name)
        error = (found - expected).norm() / expected.norm()
        assert 0 < error < bound, f"{name} is off by {error:.3f}"
    assert torch.allclose(seen.attention.sum(-1), torch.ones(3, 4, len(IDS)))
    read, likeliest = logit_lens(smaller, seen, BYTES.vocab_size), logit_lens(model, exact, BYTES.vocab_size)
    assert (read.probabilities - likeliest.probabilities).abs().max() < 0.15
    view = look(smaller, BYTES, IDS, 0)
    assert view["tokens"][1]["loss"] == pytest.approx(surprise(exact).loss[0].item(), rel=0.1)


def test_marks_are_told_by_their_names() -> None:
    marked = RoleTokenizer(BYTES)
    assert [spell(marked, mark) for mark in marked.roles.all] == list(ROLE_SPELLINGS)
    assert spell(marked, 65) == "A"
    assert spell(marked, 0xC3) == "\\xc3"


def test_many_heads_shorten_the_text() -> None:
    xl = GPT2Config(vocab_size=50257, context_length=1024, n_layer=48, n_head=25, n_embd=1600)
    assert most_tokens(xl) ** 2 * xl.n_layer * xl.n_head <= MOST_ATTENTION < 2 * most_tokens(xl) ** 2 * 48 * 25
    small = GPT2Config(vocab_size=50257, context_length=1024, n_layer=12, n_head=12, n_embd=768)
    assert most_tokens(small) == 192


def test_origins_mark_what_was_copied(tmp_path: Path) -> None:
    copied = "the quick brown fox jumps over the lazy dog and back again"
    shards = shards_of(tmp_path, [list(b"unlike. " * 9), list(f"Once {copied}, it said.".encode())])
    found = origins(BYTES, list(f"Then {copied}!".encode()), 0, shards, ["one.txt", "two.txt"])
    span = found["spans"][0]
    assert (span["text"], span["document"]) == (f" {copied}", "two.txt")
    assert span["before"].endswith("unlike. \nOnce")  # a document ended
    assert span["after"] == ", it said."
    assert found["share"] == pytest.approx((len(copied) + 1) / (len(copied) + 6))
    assert origins(BYTES, list(f"Then {copied}!".encode()), 11, shards)["share"] == pytest.approx(10 / 11)
    assert found["passages"][0]["document"] == "two.txt"
    assert origins(BYTES, list(b"nothing alike here"), 3, shards)["spans"] == []


def test_a_page_holds_a_text_that_would_end_it(model: GPT2) -> None:
    evil = list(b"</script><script>alert(1)//<!--")
    view = look(model, BYTES, evil, 0)
    page = html({**view, "origins": None, "name": "</title>"})
    assert page.count("</script>") == 2  # those of the page itself
    data = re.search(r'<script type="application/json" id="view">(.*?)</script>', page, re.S)
    assert data is not None
    assert "".join(token["text"] for token in json.loads(data[1])["tokens"]) == bytes(evil).decode()
    assert "http" not in page.replace('http-equiv="', "")
    script = re.search(r'<script type="module">(.*?)</script>', page, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
