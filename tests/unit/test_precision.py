"""Smaller weights and compiled reading say what the full model says, within their rounding."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gpt2 import console, native_code
from gpt2.errors import ConfigError
from gpt2.generation import load
from gpt2.generation.load import fastest_reader
from gpt2.generation.native import NativeReader, compiled, fits, reads
from gpt2.generation.reader import Piece, Reader
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.model.precision import in_precision, quantize_rows
from gpt2.tokenizer.bpe import BytePairTokenizer
from gpt2.weights.huggingface import to_files

# Heads of 64 numbers: four registers of 16 at once, as GPT-2 has them.
SIZES = GPT2Config(vocab_size=515, context_length=96, n_layer=3, n_head=2, n_embd=128)
# Of numbers in 8 bits a register holds 64.
UNEVEN = [replace(SIZES, n_embd=96), replace(SIZES, n_head=5, n_embd=160)]
WIDE = replace(SIZES, n_head=4, n_embd=256)  # sums in fp16 are made in parts, of 768 products
SHARE = {"fp32": 2e-6, "fp16": 0.004, "bf16": 0.02, "int8": 0.03}
"""Of the logits' own spread: how far they may lie from those in fp32."""
every_width_and_precision = pytest.mark.parametrize(
    ("sizes", "precision"),
    [*itertools.product([SIZES, *UNEVEN], SHARE), (WIDE, "fp16")],
    ids=lambda value: str(getattr(value, "n_embd", value)),
)
needs_compiler = pytest.mark.skipif(compiled() is None, reason="there is no compiler")


def model(sizes: GPT2Config = SIZES) -> GPT2:
    made = GPT2(sizes)
    generator = torch.Generator().manual_seed(8)
    made.init_weights(generator)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.05, generator=generator))
    return made.eval()


def pieces_of(row_lengths: list[list[int]]) -> list[list[Piece]]:
    """Pieces to read, step by step: row r reads so many ids in step s, none at 0."""
    ids = torch.Generator().manual_seed(2)
    return [
        [
            Piece(row, torch.randint(0, SIZES.vocab_size, (length,), generator=ids).tolist(), answers=1)
            for row, length in enumerate(lengths)
            if length
        ]
        for lengths in row_lengths
    ]


STEPS = pieces_of([[5, 0, 40], [1, 3, 1], [1, 1, 0], [32, 1, 1], [33, 2, 1], [1, 1, 1]])


def expected(sizes: GPT2Config) -> list[Tensor]:
    """Logits by the plain model, everything read anew each time."""
    plain, texts = model(sizes), {row: [] for row in range(3)}
    steps = []
    with torch.no_grad():
        for pieces in STEPS:
            rows = []
            for piece in pieces:
                texts[piece.row] += piece.ids
                rows.append(plain(torch.tensor([texts[piece.row]]))[0, -1])
            steps.append(torch.stack(rows))
    return steps


@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("native", marks=needs_compiler), pytest.param("both", marks=needs_compiler)]
)
@every_width_and_precision
def test_logits_are_those_of_the_full_model_within_rounding(sizes: GPT2Config, kind: str, precision: str) -> None:
    small = in_precision(model(sizes), precision)
    library = compiled()
    if kind != "torch" and library is not None and not reads(library, small.output_matrix.dtype):
        pytest.skip("this processor does not multiply fp16")
    reader = Reader(small, 3) if kind == "torch" or library is None else NativeReader(small, 3, library)
    if isinstance(reader, NativeReader):
        reader.most_tokens = 32 if kind == "both" else 1000
    truth = expected(sizes)
    spread = torch.cat(truth).std()
    for pieces, wanted in zip(STEPS, truth, strict=True):
        assert (reader.read(pieces) - wanted.numpy()).std() < SHARE[precision] * spread
        assert reader.cache.lengths == [
            sum(len(p.ids) for step in STEPS[: STEPS.index(pieces) + 1] for p in step if p.row == row)
            for row in range(3)
        ]


@needs_compiler
@every_width_and_precision
def test_compiled_reading_gives_the_same_bits_beside_others_in_any_pieces_and_with_any_number_of_threads(
    sizes: GPT2Config, precision: str
) -> None:
    library = compiled()
    assert library is not None
    small = in_precision(model(sizes), precision)
    if not reads(library, small.output_matrix.dtype):
        pytest.skip("this processor does not multiply fp16")
    together, alone, one_by_one = (NativeReader(small, 3, library) for _ in range(3))
    for reader in (together, alone, one_by_one):
        reader.most_tokens = 1000
    threads = torch.get_num_threads()
    try:
        for pieces in STEPS:
            torch.set_num_threads(2)
            at_once = together.read(pieces)
            torch.set_num_threads(1)
            for piece, expected_bits in zip(pieces, at_once, strict=True):
                np.testing.assert_array_equal(alone.read([piece])[0], expected_bits)
                each = [one_by_one.read([Piece(piece.row, [token], answers=1)]) for token in piece.ids]
                np.testing.assert_array_equal(each[-1][0], expected_bits)
    finally:
        torch.set_num_threads(threads)


def test_inputs_too_large_for_fp16_are_scaled() -> None:
    scaled, library, gain = model(), compiled(), 3e4
    if library is None or not reads(library, torch.float16):
        pytest.skip("this processor does not multiply fp16")
    with torch.no_grad():
        for block in scaled.h:
            block.ln_2.weight.mul_(gain), block.ln_2.bias.mul_(gain)
            block.mlp.c_fc.weight.mul_(gain**-0.5), block.mlp.c_fc.bias.mul_(gain**0.5)
            block.mlp.c_proj.weight.mul_(gain**-0.5)
        text = torch.randint(0, SIZES.vocab_size, (1, 40), generator=torch.Generator().manual_seed(3))
        truth = scaled(text)[0, -1]
    found = NativeReader(in_precision(scaled, "fp16"), 1, library).read([Piece(0, text[0].tolist(), answers=1)])[0]
    assert (torch.from_numpy(found) - truth).std() < SHARE["fp16"] * truth.std()


@pytest.mark.parametrize("wrong", [200.0, float("inf"), float("nan")])
def test_weights_too_large_for_fp16_are_refused_and_auto_takes_another(wrong: float) -> None:
    made = model()
    with torch.no_grad():
        made.h[1].mlp.c_fc.weight[3, 5] = wrong
    assert load._fastest_on_cpu(made, compiled()) != "fp16"
    with pytest.raises(ConfigError, match=f"A weight of this model is {wrong:.0f}: with such above 128") as refused:
        in_precision(made, "fp16")
    assert "bf16" in refused.value.fix
    with torch.no_grad():
        made.h[1].mlp.c_fc.weight[3, 5] = -128.0
    assert in_precision(made, "fp16").wte.weight.dtype == torch.float16


@needs_compiler
def test_only_sizes_that_fill_registers_are_compiled_others_are_read_by_pytorch() -> None:
    assert fits(SIZES)
    assert isinstance(fastest_reader(model(), 1), NativeReader)
    odd = GPT2(GPT2Config(vocab_size=50, context_length=8, n_layer=1, n_head=2, n_embd=48))
    assert not fits(odd.config)
    assert type(fastest_reader(odd, 1)) is Reader


def test_without_a_compiler_pytorch_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert compiled() is None
    assert type(fastest_reader(model(), 1)) is Reader


@needs_compiler
def test_why_pytorch_reads_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    console.warn_once.cache_clear()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native_code.Path, "home", no_home)
    assert compiled() is None
    assert compiled() is None
    assert capsys.readouterr().err.count("home directory") == 1

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_code, "OPTIONS", ("-no-such-option",))
    assert compiled() is None
    assert "no-such-option" in capsys.readouterr().err

    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiled() is None
    assert "there is no C++ compiler" in capsys.readouterr().err


@needs_compiler
def test_code_in_a_folder_of_somebody_else_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(native_code._folder(), tmp_path / "gpt2-from-scratch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled() is not None
    assert (tmp_path / "gpt2-from-scratch").stat().st_mode & 0o077 == 0
    monkeypatch.setattr(native_code.os, "getuid", lambda: 12345)
    assert compiled() is None


def test_eight_bits_are_the_nearest_and_zero_stays_zero() -> None:
    matrix = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    matrix[2] = 0.0
    numbers, scale = quantize_rows(matrix)
    assert numbers.abs().max() == 127
    assert ((numbers * scale[:, None] - matrix).abs() <= scale[:, None] / 2 + 1e-7).all()
    assert not numbers[2].any()


def test_precisions_shrink_the_weights() -> None:
    def size(made: GPT2) -> int:
        return sum(part.numel() * part.element_size() for part in (*made.parameters(), *made.buffers()))

    sizes = [size(in_precision(model(), precision)) for precision in ("fp32", "bf16", "int8")]
    assert size(in_precision(model(), "fp16")) == sizes[1]
    assert all(less < 0.65 * more for more, less in itertools.pairwise(sizes))


def test_more_texts_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, row = torch.device("cpu"), 2 * 3 * 96 * 128 * 4
    monkeypatch.setattr(load, "free_memory", lambda device: 10 * row)
    load._check_memory(model(), 10, cpu)
    load._check_memory(in_precision(model(), "int8"), 20, cpu)
    with pytest.raises(ConfigError, match=r"keys and values of 1,000 texts at once take 0\.3 GiB") as refused:
        load._check_memory(model(), 1000, cpu)
    assert refused.value.fix == "Choose 10 at most."


@needs_compiler
@pytest.mark.parametrize(("width", "native"), [(96, True), (48, False)])
@pytest.mark.parametrize("precision", ["auto", *SHARE])
def test_who_reads_in_which_precision(
    width: int, native: bool, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = BytePairTokenizer("bytes", [bytes([byte]) for byte in range(256)])
    made = GPT2(GPT2Config(tokenizer.vocab_size, 32, 1, 2, width))
    config, generation, tensors = to_files(made, tokenizer.end_of_text)
    files = {"config.json": config, "generation_config.json": generation, **tokenizer.to_files(32)}
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reader = load.open_engine(tmp_path, torch.device("cpu"), precision).reader
    library = compiled()
    assert library is not None
    native = native and (precision != "fp16" or reads(library, torch.float16))
    assert isinstance(reader, NativeReader) == native
    dtype = reader.model.wte.weight.dtype
    if precision == "auto" and not native:
        assert dtype == torch.float32
    if precision == "auto" and native and reads(library, torch.float16):
        assert dtype == torch.float16
    warned = "the same seed may give another text" in " ".join(capsys.readouterr().err.split())
    assert warned == (not native and dtype != torch.float32)
