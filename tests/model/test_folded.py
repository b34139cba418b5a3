"""One folded layer against each member's own arithmetic."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quorum_model.folded import FoldedLinear

MEMBERS, TOKENS, D_IN, D_OUT, RANK = 3, 7, 12, 20, 4


class Quantised(nn.Linear):
    """A layer whose weight is not what it multiplies with."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / 2, self.bias)


def make_layer(base: nn.Module, dtype: torch.dtype = torch.float64) -> FoldedLinear:
    torch.manual_seed(0)
    for parameter in base.parameters():
        parameter.data = torch.randn_like(parameter)
    a, b = torch.randn(MEMBERS, D_IN, RANK), torch.randn(MEMBERS, RANK, D_OUT)
    layer = FoldedLinear(base, a, b, torch.tensor([2.0, 0.3, 1.0])).to(dtype)
    return layer.eval().requires_grad_(False)


def by_member(layer: FoldedLinear, x: Tensor) -> Tensor:
    """In fp64, one member and one product at a time."""
    exact = [
        layer.base.double()(x[k % x.shape[0]].double())
        + layer.scaling[k].double() * x[k % x.shape[0]].double() @ layer.a[k].double() @ layer.b[k].double()
        for k in range(MEMBERS)
    ]
    return torch.stack(exact)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(D_IN, D_OUT),
        lambda: nn.Linear(D_IN, D_OUT, bias=False),
        lambda: Conv1D(D_OUT, D_IN),
        lambda: Quantised(D_IN, D_OUT),
    ],
    ids=["linear", "no bias", "conv1d", "quantised"],
)
@pytest.mark.parametrize("rows", [MEMBERS, 1])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_folded_layer_is_each_members_own(
    make: Callable[[], nn.Module], rows: int, grad: bool, dtype: torch.dtype
) -> None:
    layer = make_layer(make(), dtype)
    x = torch.randn(rows, TOKENS, D_IN).to(dtype)
    with torch.set_grad_enabled(grad):
        actual = layer(x)
    assert actual.dtype == dtype
    # bf16: products of about 20, three roundings of 2^-9 each, and those of the update's two factors.
    tolerance = 1e-12 if dtype == torch.float64 else 0.3
    torch.testing.assert_close(actual.double(), by_member(layer, x), rtol=tolerance / 10, atol=tolerance)


def test_an_update_below_the_products_last_bit_is_not_lost_in_bf16() -> None:
    """Products of about 300, whose last bit is 2, and updates of 0.6: lost everywhere if they come after rounding."""
    torch.manual_seed(0)
    tokens = 4000
    base = nn.Linear(2, 1, bias=False)
    base.weight.data = torch.tensor([[300.0, 1.0]])
    a, b = torch.tensor([[0.5], [0.0]]).expand(MEMBERS, -1, -1), torch.tensor([[1.2]]).expand(MEMBERS, -1, -1)
    layer = (
        FoldedLinear(base, a.clone(), b.clone(), torch.ones(MEMBERS)).to(torch.bfloat16).eval().requires_grad_(False)
    )
    x = torch.stack([torch.ones(MEMBERS, tokens), 20 * torch.randn(MEMBERS, tokens)], dim=2).to(torch.bfloat16)
    exact = by_member(layer, x)
    layer = layer.to(torch.bfloat16)
    with torch.no_grad():
        once = layer(x).double()
    twice = torch.baddbmm(base.to(torch.bfloat16)(x), x @ a.to(x.dtype), b.to(x.dtype)).double()
    # Roundings that are even, of width 2 or less, average out over 12,000 numbers to 0.58 / 110 = 0.005.
    assert abs(float((once - exact).mean())) < 0.03
    assert float((twice - exact).mean()) < -0.5


def test_an_update_below_the_bias_last_bit_is_not_lost_in_bf16() -> None:
    """A bias of 30, whose last bit is 0.125, products of about 10 and updates of 0.05."""
    torch.manual_seed(0)
    tokens = 4000
    base = nn.Linear(2, 1)
    base.weight.data, base.bias.data = torch.tensor([[0.0, 1.0]]), torch.tensor([30.0])
    a, b = torch.tensor([[0.05], [0.0]]).expand(MEMBERS, -1, -1), torch.tensor([[1.0]]).expand(MEMBERS, -1, -1)
    layer = FoldedLinear(base, a.clone(), b.clone(), torch.ones(MEMBERS)).eval().requires_grad_(False)
    x = torch.stack([torch.ones(MEMBERS, tokens), 10 * torch.randn(MEMBERS, tokens)], dim=2).to(torch.bfloat16)
    exact = by_member(layer, x)
    with torch.no_grad():
        actual = layer.to(torch.bfloat16)(x).double()
    # Two roundings of width 0.25 or less average out over 12,000 numbers to 0.001.
    assert abs(float((actual - exact).mean())) < 0.01
