"""Two ways to attend, one outcome."""

import pytest
import torch

from gpt2.model.attention import attend


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_plain_products_in_bf16_are_fused_attention(tokens: int) -> None:
    parts = [random(2, 3, tokens, 8, seed=n).to(torch.bfloat16) for n in range(4)]
    plain = [part.clone().requires_grad_() for part in parts[:3]]
    exact = [part.double().requires_grad_() for part in parts[:3]]
    ours = attend(*plain, mask=None, causal=True, dropout=0.0)
    theirs = attend(*exact, mask=None, causal=True, dropout=0.0)
    assert "Scaled" not in type(ours.grad_fn).__name__  # it is the other way
    assert torch.allclose(ours.double(), theirs, atol=0.02)
    ours.backward(parts[3])
    theirs.backward(parts[3].double())
    for a, b in zip(plain, exact, strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad.double(), b.grad, atol=0.06)


def test_plain_products_see_no_later_token() -> None:
    q, k, v = (random(1, 2, 9, 4, seed=n).to(torch.bfloat16).requires_grad_() for n in range(3))
    attend(q, k, v, mask=None, causal=True, dropout=0.0)[:, :, :5].sum().backward()
    assert v.grad is not None
    assert v.grad[:, :, :5].abs().amin() > 0
    assert v.grad[:, :, 5:].abs().max() == 0


def test_dropped_weights_are_made_up_for() -> None:
    q, k = (torch.zeros(1, 1, 256, 4, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    v = torch.ones(1, 1, 256, 4, dtype=torch.bfloat16)
    torch.manual_seed(0)
    out = attend(q, k, v, mask=None, causal=True, dropout=0.5)[0, 0, 128:]
    assert out.std() > 0.02
    assert abs(out.float().mean() - 1) < 0.05
