"""Against transformers' own GPT-2: the same logits, loss, gradients and text, and folders that both can read."""

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2.config.presets import PRESETS
from gpt2.errors import CheckpointError
from gpt2.generation.engine import Engine
from gpt2.generation.native import NativeReader, compiled
from gpt2.generation.reader import Reader
from gpt2.generation.request import Request, Sampling
from gpt2.inspection.lens import logit_lens
from gpt2.inspection.trace import trace
from gpt2.model.cost import parameters
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.weights.huggingface import config_from_hf, export_tensors, hf_config, load_model, to_files

BYTES = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
# The compiled reader takes heads of 16 numbers, and widths of 64.
TINY = GPT2Config(vocab_size=257, context_length=48, n_layer=3, n_head=4, n_embd=64, dropout=0.1)
FULL = GPT2Config(vocab_size=50257, **PRESETS["gpt2"]._asdict())

NATIVE = pytest.param("native", marks=pytest.mark.skipif(compiled() is None, reason="there is no compiler"))


def engine(model: GPT2, kind: str, slots: int) -> Engine:
    """Read by PyTorch, or by compiled code, as it is where it is served."""
    library = compiled() if kind == "native" else None
    return Engine(model, BYTES, slots, Reader(model, slots) if library is None else NativeReader(model, slots, library))


def random_model(config: GPT2Config) -> GPT2:
    """Biases and norms that are not 0 and 1, so that all count; in the tiny one, what and where was read decides."""
    generator = torch.Generator().manual_seed(3)
    model = GPT2(config)
    model.init_weights(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
            elif config is TINY and name != "wte.weight":
                parameter.mul_(12.0)
    return model.eval()


def save(folder: Path, model: GPT2) -> Path:
    config, generation, tensors = to_files(model, BYTES.end_of_text)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def twin_of(model: GPT2) -> Any:
    """transformers' model with the same weights."""
    twin = transformers.GPT2LMHeadModel(transformers.GPT2Config(**hf_config(model.config, 0)))
    missing, unexpected = twin.load_state_dict(export_tensors(model.state_dict()), strict=False)
    assert (missing, unexpected) in ((["lm_head.weight"], []), ([], []))  # the output matrix is tied
    return twin.eval()


@pytest.fixture(scope="module")
def tiny() -> GPT2:
    return random_model(TINY)


@pytest.fixture(scope="module")
def twin(tiny: GPT2) -> Any:
    return twin_of(tiny)


@pytest.fixture
def folder(tmp_path: Path, tiny: GPT2) -> Path:
    return save(tmp_path / "model", tiny)


@pytest.mark.parametrize(("config", "shape"), [(TINY, (3, 48)), (FULL, (1, 12))], ids=["tiny", "124M"])
def test_logits_loss_and_gradients_are_the_same(config: GPT2Config, shape: tuple[int, int]) -> None:
    ours = random_model(config)
    theirs = twin_of(ours)
    tokens = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(4))

    logits = ours(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    answer = theirs(tokens, labels=tokens)
    torch.testing.assert_close(logits, answer.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, answer.loss, atol=1e-5, rtol=0)

    loss.backward()
    answer.loss.backward()
    gradients = export_tensors({name: gradient(parameter) for name, parameter in ours.named_parameters()})
    expected = {name: gradient(parameter) for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == expected.keys()
    for name, value in gradients.items():
        difference = (value - expected[name]).abs().max().item()
        largest = expected[name].abs().max().item()
        assert difference < 1e-5, name
        assert difference < 1e-4 * largest, name


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_the_full_size_has_124_439_808_weights() -> None:
    with torch.device("meta"):
        model = GPT2(FULL)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(FULL) == 124_439_808


@pytest.mark.parametrize("prompt", ["The", "Q: why?\nA:", "漢字 🤖", "x" * 20, "\n\n"])
def test_greedy_text_is_the_same_with_cache_without_and_in_transformers(tiny: GPT2, twin: Any, prompt: str) -> None:
    prompt_ids = BYTES.encode(prompt).tolist()
    count = TINY.context_length - len(prompt_ids)
    cached = list(Engine(tiny, BYTES).generate(prompt_ids, count, Sampling(temperature=0)))

    uncached = list(prompt_ids)
    with torch.no_grad():
        while len(uncached) < TINY.context_length:
            uncached.append(int(tiny(torch.tensor([uncached]))[0, -1].argmax()))
    tokens = torch.tensor([prompt_ids])
    theirs = twin.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=BYTES.end_of_text,
        pad_token_id=BYTES.end_of_text,
    )[0].tolist()

    end = [*uncached, BYTES.end_of_text].index(BYTES.end_of_text)
    assert prompt_ids + cached == uncached[:end]
    assert prompt_ids + cached == [token for token in theirs if token != BYTES.end_of_text]
    assert len(set(cached)) > 3


def test_a_trace_has_the_attention_and_hidden_states_of_transformers(tiny: GPT2, twin: Any) -> None:
    prompt = BYTES.encode("what looks at what?").tolist()
    seen = trace(tiny, prompt)
    twin.set_attn_implementation("eager")  # the only one that gives its weights
    try:
        with torch.no_grad():
            theirs = twin(torch.tensor([prompt]), output_attentions=True, output_hidden_states=True)
            assert (seen.attention - torch.cat(theirs.attentions)).abs().max() < 1e-5
            *streams, normed = theirs.hidden_states  # the last one has passed the last norm
            assert len(streams) == TINY.n_layer
            for ours, stream in zip(seen.residuals, streams, strict=False):
                assert (ours - stream[0]).abs().max() < 1e-5 * stream.abs().max()
            assert (tiny.ln_f(seen.residuals[-1]) - normed[0]).abs().max() < 1e-5 * normed.abs().max()
            lens = logit_lens(tiny, seen, BYTES.vocab_size, k=3)
            for depth, stream in enumerate(streams):
                expected = twin.lm_head(twin.transformer.ln_f(stream[0]))[:, : BYTES.vocab_size].softmax(-1)
                assert (lens.probabilities[depth] - expected.topk(3).values).abs().max() < 1e-5
    finally:
        twin.set_attn_implementation("sdpa")


@pytest.mark.parametrize("kind", ["torch", NATIVE])
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_greedy_text_of_many_prompts_at_once_is_that_of_transformers(
    tiny: GPT2, twin: Any, count: int, kind: str
) -> None:
    draw = random.Random(count)
    prompts = [tuple(draw.randrange(256) for _ in range(draw.randrange(1, 40))) for _ in range(count)]
    requests = [Request(prompt, TINY.context_length - len(prompt), Sampling(temperature=0)) for prompt in prompts]
    ours: list[list[int]] = [[] for _ in prompts]
    for number, delta in engine(tiny, kind, 25).run(requests):
        ours[number] += [token.id for token in delta.tokens]
    for prompt, answer in zip(prompts, ours, strict=True):
        tokens = torch.tensor([prompt])
        theirs = twin.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=TINY.context_length - len(prompt),
            do_sample=False,
            eos_token_id=BYTES.end_of_text,
            pad_token_id=BYTES.end_of_text,
        )[0, len(prompt) :].tolist()
        assert answer == [token for token in theirs if token != BYTES.end_of_text]


@pytest.mark.parametrize("kind", ["torch", NATIVE])
def test_sampled_text_has_the_distribution_of_the_model(tiny: GPT2, kind: str) -> None:
    """Pearson's chi-square of the second token, given the first, and of the first, over many seeds side by side."""
    prompt, first, second = [5, 6, 7], Counter[int](), Counter[int]()
    requests = (Request(tuple(prompt), 2, Sampling(0.9, 12, seed=seed)) for seed in range(4000))
    written: dict[int, list[int]] = defaultdict(list)
    for number, delta in engine(tiny, kind, 50).run(requests):
        written[number] += [token.id for token in delta.tokens]
    first.update(ids[0] for ids in written.values())
    likeliest = first.most_common(1)[0][0]
    second.update(ids[1] for ids in written.values() if ids[0] == likeliest and len(ids) > 1)
    for seen, text in ((first, prompt), (second, [*prompt, likeliest])):
        with torch.no_grad():
            logits = tiny(torch.tensor([text]))[0, -1, : BYTES.vocab_size].double() / 0.9
        values, ids = logits.topk(12)
        expected = values.softmax(-1) * seen.total()
        counts = torch.tensor([seen[int(token)] for token in ids], dtype=torch.float64)
        assert counts.sum() == seen.total() > 300
        assert ((counts - expected).square() / expected).sum() < 31.3  # 11 degrees of freedom: once in a thousand


def test_transformers_opens_our_folder_with_the_same_logits(folder: Path, tiny: GPT2, twin: Any) -> None:
    opened, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert opened.config.eos_token_id == opened.generation_config.eos_token_id == BYTES.end_of_text
    tokens = torch.arange(48)[None]
    assert torch.equal(opened.eval()(tokens).logits, twin(tokens).logits)
    torch.testing.assert_close(opened(tokens).logits, tiny(tokens), atol=1e-5, rtol=1e-5)


def test_what_we_write_we_read_back_bit_by_bit(folder: Path, tiny: GPT2) -> None:
    model = load_model(folder)
    assert model.config == TINY
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tiny.state_dict().items())
    assert load_model(folder, dropout=0.25).config.dropout == 0.25


@pytest.mark.parametrize("kind", ["GPT2LMHeadModel", "GPT2Model"])
def test_we_open_a_folder_that_transformers_saved(tmp_path: Path, twin: Any, tiny: GPT2, kind: str) -> None:
    (twin if kind == "GPT2LMHeadModel" else twin.transformer).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tiny.state_dict().items())


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a folder's weight file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_old_masks_a_second_output_matrix_and_missing_prefixes_are_understood(folder: Path, tiny: GPT2) -> None:
    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
        tensors["h.2.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(folder, age)
    model = load_model(folder)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in tiny.state_dict().items())


def test_half_precision_is_read_as_full(folder: Path, tiny: GPT2) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
    model = load_model(folder)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tiny.state_dict()[name].half().float())


def refused(folder: Path) -> str:
    """What is said about a folder that cannot be loaded; there is always a way out."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert caught.value.fix
    return str(caught.value)


def test_everything_that_differs_is_named_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.wpe.weight"]
        tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"].t()
        tensors["score.weight"] = torch.zeros(2, TINY.n_embd)
        tensors["ln_f.bias"] = tensors["transformer.ln_f.bias"].clone()
        tensors["transformer.ln_f.weight"] = torch.ones(TINY.n_embd, dtype=torch.int64)

    rewrite(folder, spoil)
    message = refused(folder)
    assert "wpe.weight is missing" in message
    assert "transformer.h.0.attn.c_attn.weight has shape [192, 64], not [64, 192]" in message
    assert "score.weight is no weight of this GPT-2" in message
    assert "ln_f.bias is there twice" in message
    assert "transformer.ln_f.weight has numbers of kind I64" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(folder: Path, value: float) -> None:
    rewrite(folder, lambda tensors: tensors["transformer.h.1.mlp.c_fc.weight"][0].fill_(value))
    message = refused(folder)
    assert "transformer.h.1.mlp.c_fc.weight" in message
    assert "diverged" in message


def test_an_untied_output_matrix_is_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"] + 1}))
    assert "lm_head.weight differs from transformer.wte.weight" in refused(folder)


def test_a_damaged_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "cannot be read" in refused(folder)
    path.write_bytes(b"\xff" * len(whole))
    assert "cannot be read" in refused(folder)
    path.write_bytes(whole[:1000])
    assert "has 1,000 bytes, too few" in refused(folder)


def test_a_pickle_is_not_opened_and_the_conversion_is_told(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = refused(folder)
    assert "pickle" in message
    assert f"GPT2LMHeadModel.from_pretrained('{folder}').save_pretrained(" in message


def test_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    assert "has no config.json" in refused(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "has no model.safetensors" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "several files" in refused(folder)


def test_an_absurd_size_is_refused_before_any_memory_is_taken(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2**24, "n_embd": 2**16}))
    assert "too few for the 1,254,136,283,136 weights" in refused(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "llama"}, "'llama', not 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"attn_pdrop": 0.2}, "resid_pdrop, embd_pdrop, attn_pdrop are [0.1, 0.1, 0.2]"),
        ({"n_inner": 64}, "n_inner is 64, not 4 times n_embd (256)"),
        ({"n_ctx": 24}, "n_ctx is 24"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"n_head": 5}, "n_head 5 does not divide n_embd 64"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"n_layer": 10**9}, "n_layer is 1000000000"),
        ({"n_embd": 32.0}, "n_embd is 32.0"),
        ({"n_positions": True}, "n_positions is True"),
    ],
)
def test_what_is_not_gpt2_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        config_from_hf({**hf_config(TINY, 0), **change}, Path("x/config.json"))
    assert named in caught.value.what
    assert "x/config.json" in caught.value.what


def test_configurations_go_there_and_back(tmp_path: Path) -> None:
    assert config_from_hf(hf_config(TINY, 256), tmp_path) == TINY
    assert config_from_hf({**hf_config(TINY, 256), "activation_function": "gelu_pytorch_tanh"}, tmp_path) == TINY
    theirs = transformers.GPT2Config(n_inner=4 * 768).to_dict()
    assert config_from_hf(theirs, tmp_path) == GPT2Config(50257, 1024, 12, 12, 768, 0.1)
    for values in ([], "gpt2", None):
        with pytest.raises(CheckpointError):
            config_from_hf(values, tmp_path)
