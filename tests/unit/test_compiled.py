"""A compiled pass gives the same loss; one that cannot be compiled is made as it is, and other errors stay errors."""

import functools
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from gpt2.data.dataset import IGNORED
from gpt2.model.gpt2 import GPT2, GPT2Config
from gpt2.training.compiled import Compiled
from gpt2.training.loss import NextTokenLoss


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    torch._dynamo.reset()  # pyright: ignore[reportAttributeAccessIssue]


def loss() -> NextTokenLoss:
    model = GPT2(GPT2Config(53, context_length=16, n_layer=2, n_head=2, n_embd=32))
    model.init_weights(torch.Generator().manual_seed(1))
    return NextTokenLoss(model)


def gradient(forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], of: NextTokenLoss) -> Tensor:
    of.zero_grad()
    inputs, targets = torch.arange(48).view(3, 16), torch.arange(1, 49).view(3, 16)
    targets[1, 3:7] = IGNORED
    total, counted = forward(inputs, targets)
    (total / counted).backward()
    return torch.cat([total.detach()[None], *(parameter.grad.flatten() for parameter in of.parameters())])


def by(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))


def test_a_compiled_pass_gives_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def noting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    by(monkeypatch, noting)
    made, said = loss(), []
    torch.testing.assert_close(gradient(Compiled(made, said.append), made), gradient(made, made))
    assert len(graphs) == 1  # in one piece
    assert not said


@pytest.mark.parametrize("chunk", [2**28, 4 * 53 * 10])
@pytest.mark.parametrize("aligned", [1, 64])
def test_the_compiler_of_gradients_gives_the_same(monkeypatch: pytest.MonkeyPatch, chunk: int, aligned: int) -> None:
    """Torch 2.11 gave zeros for a loss that was summed in place. Targets that do not count are among them."""
    monkeypatch.setattr("gpt2.training.loss.ALIGNED", {"cpu": aligned})
    monkeypatch.setattr("gpt2.training.loss.CHUNK_BYTES", {"cpu": chunk})  # of logits: one and several
    monkeypatch.setattr("gpt2.training.loss.EVEN", 4)
    by(monkeypatch, "aot_eager")
    made, said = loss(), []
    torch.testing.assert_close(gradient(Compiled(made, said.append), made), gradient(made, made))
    assert not said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compiling", [False, True])
def test_on_a_gpu_the_residual_stream_has_16_bits_and_the_gradient_is_that_of_fp32_about(compiling: bool) -> None:
    made = loss()
    exact = gradient(made, made)
    made.cuda()
    streams = []
    if not compiling:
        made.model.get_submodule("h.1").register_forward_hook(lambda block, given, x: streams.append(x.dtype))
    forward = Compiled(made, print) if compiling else made

    def on_gpu(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return forward(inputs.cuda(), targets.cuda())

    off = gradient(on_gpu, made).cpu() - exact
    assert off.norm() < 0.03 * exact.norm()
    assert streams == ([] if compiling else [torch.bfloat16])


def test_a_backward_pass_that_cannot_be_compiled_is_made_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.backends.common import aot_autograd

    def failing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> NoReturn:
        raise OSError("no room for what was compiled")

    by(monkeypatch, aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=failing))
    made, said = loss(), []
    assert torch.equal(gradient(Compiled(made, said.append), made), gradient(made, made))
    assert said == ["no room for what was compiled."]


def test_what_cannot_be_compiled_is_made_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> NoReturn:
        tried.append(graph)
        raise OSError("there is no compiler.\nA long story")

    by(monkeypatch, failing)
    made, said = loss(), []
    compiled = Compiled(made, said.append)
    for _ in range(2):
        assert torch.equal(gradient(compiled, made), gradient(made, made))
    assert len(tried) == 1
    assert len(said) == 1
    assert said[0].endswith("there is no compiler.")


def test_the_end_of_memory_is_none_of_its_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., NoReturn]:
        def run(*given: Tensor) -> NoReturn:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return run

    by(monkeypatch, out_of_memory)
    made, said = loss(), []
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(made, said.append)(torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long))
    assert not said
