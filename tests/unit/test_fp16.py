"""What trains in fp16: products within what 16 bits allow, GELU nearer than PyTorch's, and a way on where it is not."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.conftest import Answer, make_text
from torch import Tensor, nn

from gpt2 import fp16, runtime
from gpt2.config.load import validate
from gpt2.config.schema import Settings
from gpt2.errors import ConfigError
from gpt2.files import read_json
from gpt2.fp16 import HalfProducts, product
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.recipes.settled import adapted
from gpt2.runtime import autocast, pick_precision
from gpt2.training.loss import NextTokenLoss
from gpt2.training.trainer import Trainer

needs_fp16 = pytest.mark.skipif(bool(fp16.missing()), reason=fp16.missing())
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are made in fp16, too."""
    monkeypatch.setattr(fp16, "LEAST_WORK", 0)
    monkeypatch.setattr(fp16, "LEAST_REUSE", 0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(made: Tensor, a: Tensor, b: Tensor) -> float:
    """Of a product, as a share of what its terms, which are as often above zero as below, add up to."""
    terms = a.double().square() @ b.double().square()
    return ((made - a.double() @ b.double()).square().mean() / terms.mean()).sqrt().item()


@needs_fp16
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [1, 12, 13, 61])
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 150])
@pytest.mark.parametrize("inner", [1, 16, 95, 97, 250])
def test_a_product_of_any_shape_is_as_near_as_16_bits_allow(rows: int, columns: int, inner: int) -> None:
    a, b, bias = random(rows, inner), random(inner, columns, seed=1), random(columns, seed=2)
    assert error(product(a, b), a, b) < 3e-3  # of many numbers 1.5e-3; one in the wrong place makes it 1 or so
    torch.testing.assert_close(product(a, b, bias), product(a, b) + bias)


@needs_fp16
def test_it_is_nearer_than_bf16() -> None:
    a, b = random(300, 768), random(768, 500, seed=1)
    assert error(product(a, b), a, b) < 0.7 * error((a.bfloat16() @ b.bfloat16()).double(), a, b)
    assert not torch.equal(product(a, b), a @ b)


@needs_fp16
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("rows", "columns", "inner"), [(40, 70, 7_000), (40, 3_500, 50), (1_300, 70, 3_100)])
def test_what_does_not_fit_is_narrowed_in_portions(rows: int, columns: int, inner: int) -> None:
    a, b, bias = random(rows, inner), random(inner, columns, seed=1), random(columns, seed=2)
    assert error(product(a, b), a, b) < 2e-3
    torch.testing.assert_close(product(a, b, bias), product(a, b) + bias)


@needs_fp16
@pytest.mark.usefixtures("small")
def test_any_strides_will_do() -> None:
    a, b, bias = random(61, 130), random(130, 150, seed=1), random(300, seed=2)
    expected = product(a, b, bias[::2].contiguous())
    for left in (a, a.T.contiguous().T, random(61, 260)[:, ::2].copy_(a)):
        for right in (b, b.T.contiguous().T, random(260, 150)[::2].copy_(b)):
            assert torch.equal(product(left, right, bias[::2]), expected)


@needs_fp16
def test_threads_change_no_bit() -> None:
    a, b, outcomes = random(301, 500), random(500, 450, seed=1), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outcomes.append((product(a, b), product(b.T, a.T), *gelu(a)))
    assert all(torch.equal(*both) for other in outcomes[1:] for both in zip(outcomes[0], other, strict=True))


@needs_fp16
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [1e-35, 1e-12, 1.0, 1e12, 1e30])
def test_numbers_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    a, b = random(30, 400) * size, random(400, 70, seed=1)
    assert error(product(a, b) / size, a / size, b) < 2e-3
    b = torch.full((400, 70), 3.9)  # all terms of a sum above zero
    torch.testing.assert_close(product(a.abs(), b), a.abs() @ b, rtol=3e-3, atol=0.0)


@needs_fp16
@pytest.mark.usefixtures("small")
def test_blocks_of_other_sizes_do_not_disturb_each_other() -> None:
    """Gradients have a few large numbers, and many that are a millionth of those."""
    a, b = random(48, 300), random(300, 70, seed=1)
    a[:12] *= 1e6
    a[24:, :96] *= 1e-6
    for rows in (slice(0, 12), slice(12, 24), slice(24, 48)):
        assert error(product(a, b)[rows], a[rows], b) < 2e-3


@needs_fp16
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    """The guard over the steps must see it."""
    a, b = random(20, 100), random(100, 70, seed=1)
    a[3, 50] = bad
    made = product(a, b)
    assert not made[3].isfinite().any()
    assert made[:3].isfinite().all()
    assert torch.equal(product(torch.zeros(20, 100), b), torch.zeros(20, 70))


@needs_fp16
def test_small_products_are_pytorchs() -> None:
    a, b, bias = random(2048, 48), random(48, 48, seed=1), random(48, seed=2)
    assert torch.equal(product(a, b), a @ b)
    assert torch.equal(product(a, b, bias), torch.addmm(bias, a, b))


def gelu(x: Tensor, outer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """GELU of numbers in fp16 and the gradient of its sum."""
    x = x.clone().requires_grad_()
    with HalfProducts():
        y = F.gelu(x, approximate="tanh")
    y.backward(torch.ones_like(y) if outer is None else outer)
    assert x.grad is not None
    return y.detach(), x.grad


@needs_fp16
def test_gelu_is_nearer_than_pytorchs() -> None:
    x = torch.cat([torch.linspace(-30, 30, 100_000), torch.tensor([0.0, -100.0, 100.0])])
    wide = x.double().requires_grad_()
    y = wide * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))
    y.sum().backward()
    plain = x.clone().requires_grad_()
    theirs = F.gelu(plain, approximate="tanh")
    theirs.sum().backward()
    assert wide.grad is not None
    assert plain.grad is not None
    for ours, exact, other in zip(gelu(x), (y, wide.grad), (theirs, plain.grad), strict=True):
        assert (ours - exact).abs().max() <= 2 * (other - exact).abs().max()
        # Where it is nearly 0, PyTorch's is 1 + tanh, of which few digits are left.
        small = (exact != 0) & (exact.abs() > 1e-30)
        off, their_off = (((made - exact) / exact)[small].abs() for made in (ours, other))
        assert off.quantile(0.99) < 2e-5 < their_off.quantile(0.99)


@needs_fp16
def test_gelu_of_what_is_no_number_is_none() -> None:
    y, slope = gelu(torch.tensor([torch.nan, 1.0, torch.inf]))
    assert y.isnan().tolist() == [True, False, False]
    assert slope.isnan()[:2].tolist() == [True, False]
    _, slope = gelu(torch.ones(2), torch.tensor([torch.nan, 1.0]))
    assert slope.isnan().tolist() == [True, False]
    x, outer = random(6, 8), torch.arange(48.0).view(8, 6).T
    for made, flat in zip(gelu(x.T, outer.T), gelu(x.T.contiguous(), outer.T.contiguous()), strict=True):
        assert torch.equal(made, flat)


def passes(loss: NextTokenLoss, precision: str) -> tuple[float, Tensor]:
    """Mean loss and all gradients."""
    inputs = torch.randint(97, (4, 32), generator=torch.Generator().manual_seed(3))
    loss.zero_grad()
    with autocast(precision, CPU):
        total, counted = loss(inputs, inputs.roll(-1, 1))
    (total / counted).backward()
    return (total / counted).item(), torch.cat([parameter.grad.flatten() for parameter in loss.parameters()])


@needs_fp16
@pytest.mark.usefixtures("small")
def test_a_models_loss_and_gradient_are_nearer_to_fp32_than_those_in_bf16() -> None:
    model = GPT2(GPT2Config(97, 32, n_layer=3, n_head=2, n_embd=64))
    model.init_weights(torch.Generator().manual_seed(1))
    loss = NextTokenLoss(model)
    (exact, gradient), (ours, near), (theirs, far) = (passes(loss, name) for name in ("fp32", "fp16", "bf16"))
    assert abs(ours - exact) < max(1e-4, abs(theirs - exact))
    assert 0 < (near - gradient).norm() < 0.7 * (far - gradient).norm()


@needs_fp16
@pytest.mark.usefixtures("small")
def test_all_products_and_gelus_of_a_pass_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is lost to a name that PyTorch has changed. Four a block, the output matrix; two more of each backward."""
    made: list[tuple[torch.Size, torch.Size]] = []

    def counting(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        made.append((a.shape, b.shape))
        return product(a, b, bias)

    monkeypatch.setattr(fp16, "product", counting)
    gelus: list[int] = []
    forward = fp16._GELU.forward
    monkeypatch.setattr(fp16._GELU, "forward", staticmethod(lambda ctx, x: gelus.append(1) or forward(ctx, x)))
    model = GPT2(GPT2Config(97, 32, n_layer=2, n_head=2, n_embd=64))
    model.init_weights(torch.Generator().manual_seed(1))
    passes(NextTokenLoss(model), "fp16")
    assert len(made) == 3 * (2 * 4 + 1)
    assert len(gelus) == 2
    made.clear()
    with torch.no_grad(), HalfProducts():
        NextTokenLoss(model)(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long))
    assert len(made) == 2 * 4 + 1


@needs_fp16
@pytest.mark.usefixtures("small")
def test_others_than_plain_fp32_tensors_are_left_alone() -> None:
    x, layer = random(9, 16), nn.Linear(16, 24)
    wide, whole = nn.Linear(16, 24).double(), torch.arange(12).view(3, 4)
    with HalfProducts():
        assert layer(x).grad_fn.__class__.__name__ == "_LinearBackward"
        assert layer(x[0]).shape == (24,)
        assert torch.equal(wide(x.double()), F.linear(x.double(), wide.weight, wide.bias))
        assert torch.equal(whole @ whole.T, torch.einsum("ij,kj->ik", whole, whole))
        assert torch.equal(F.gelu(x), nn.GELU()(x))  # the exact form
        assert (x[None] @ random(3, 16, 5)).shape == (3, 9, 5)  # one for all
    assert layer(x).grad_fn.__class__.__name__ == "AddmmBackward0"


@needs_fp16
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    workplace: Path, cli: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "notes.txt").write_text(make_text(3000))
    shape = ("--model.n-layer", 1, "--model.n-head", 2, "--model.n-embd", 64, "--model.context-length", 64)
    options = (*shape, "--tokenizer", "char", "--train.batch-size", 16, "--train.sample-tokens", 0, "--train.steps", 6)
    for run, precision in (("half", "fp16"), ("full", "fp32")):
        answer = cli("train", "notes.txt", "--run", run, *options, "--train.precision", precision)
        assert answer.code == 0, answer.err
    train_step = Trainer.train_step

    def step_and_stop(self: Trainer) -> object:
        record = train_step(self)
        self.stop_wished = self.step == 3
        return record

    monkeypatch.setattr(Trainer, "train_step", step_and_stop)
    assert cli("train", "notes.txt", "--run", "stopped", *options, "--train.precision", "fp16").code == 143
    assert cli("train", "--resume", "stopped").code == 0
    half, full, stopped = (load_file(f"runs/{run}/last/model.safetensors") for run in ("half", "full", "stopped"))
    assert all(torch.equal(half[name], stopped[name]) for name in half)
    assert not all(torch.equal(half[name], full[name]) for name in half)

    monkeypatch.setattr(fp16, "missing", lacking("the compiler is on holiday"))
    monkeypatch.setattr(Trainer, "train_step", train_step)
    refused = cli("train", "--fork", "half", "--train.steps", 2, "--train.precision", "fp16")
    assert refused.code == 2
    assert "the compiler is on holiday. Leave it open: --train.precision auto" in refused.err
    here = pick_precision("auto", CPU)
    answer = cli("train", "--fork", "half", "--train.steps", 2, "--run", "on")
    assert answer.code == 0, answer.err
    assert answer.err.count(f"the compiler is on holiday. It goes on in {here}.") == 1
    assert f"{here} on cpu" in answer.err
    assert read_json(Path("runs/on/run.json"))["settings"]["train"]["precision"] == here


def lacking(reason: str) -> Callable[[], str]:
    return lambda: reason


def test_where_there_is_no_fp16_auto_does_without_and_a_wish_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp16, "missing", lacking("its processor has no AVX512-FP16"))
    assert pick_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(ConfigError, match="Training in fp16 is not possible here: its processor has no AVX512-FP16"):
        pick_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="it is for CPUs, and this is cuda:1"):
        pick_precision("fp16", torch.device("cuda:1"))


def test_a_run_goes_on_in_what_another_machine_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fp16, "missing", lacking("there is no C++ compiler (g++, clang++)"))
    begun = validate(Settings, {"train": {"precision": "fp16"}})
    here = pick_precision("auto", CPU)
    assert adapted(begun, CPU) == validate(Settings, {"train": {"precision": here}})
    said = " ".join(capsys.readouterr().err.split())
    assert f"there is no C++ compiler (g++, clang++). It goes on in {here}." in said
    begun = validate(Settings, {"train": {"precision": "bf16"}})
    assert adapted(begun, CPU) == begun
    assert not capsys.readouterr().err


@needs_fp16
def test_without_a_compiler_it_trains_in_fp32_and_says_why_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "gains_from_bf16", lambda device: False)
    fp16._library.cache_clear()
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    assert [pick_precision("auto", CPU) for _ in range(2)] == ["fp32", "fp32"]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("Training is in fp32, whose steps") == said.count("no-such-compiler") == 1
    fp16._library.cache_clear()


@needs_fp16
def test_compiling_what_is_compiled_is_refused(workplace: Path, cli: Callable[..., Answer]) -> None:
    (workplace / "notes.txt").write_text(make_text(3000))
    answer = cli("train", "notes.txt", "--train.steps", 2, "--train.precision", "fp16", "--train.compile", "true")
    assert answer.code == 2
    assert "Leave --train.compile or --train.precision out" in answer.err
