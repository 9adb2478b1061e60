"""Gradient taps: reading the gradient of a layer's output without a copy."""

import torch
from fisher_oracle import SumOfSquares, engine_only
from torch import nn
from torch.nn import functional as F

from unlearnkit.importance.fisher.engine.interceptor import tap


def tapped(y, *, fresh):
    seen = []
    anchor = torch.zeros((), requires_grad=True)
    return tap(y, anchor, lambda found, _: seen.extend(found), (), fresh=fresh), anchor, seen


def test_a_linear_layer_on_many_rows_is_tapped_under_its_view():
    x, w, b = torch.randn(2, 3, 4, requires_grad=True), torch.randn(5, 4), torch.randn(5)
    y = F.linear(x, w, b)
    out, _, seen = tapped(y, fresh=True)
    assert out.data_ptr() == y.data_ptr()
    assert out.shape == (2, 3, 5)
    factor = torch.randn(2, 3, 5)
    (out * factor).sum().backward()
    assert torch.equal(seen[0], factor)
    assert torch.allclose(x.grad, factor @ w)


def test_view_of_foreign_memory_is_copied():
    x = torch.randn(2, 6, requires_grad=True) * 1
    out, _, _ = tapped(x.view(2, 2, 3), fresh=False)
    assert out.data_ptr() != x.data_ptr()


class InPlace(nn.Module):
    """Edits the output of a linear layer in place, and reads it through a view."""

    def __init__(self):
        super().__init__()
        self.zero, self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        rows = self.one(self.zero(x))
        rows.mul_(2)
        rows[:, 0] += 1
        rows = rows.view(-1, 6).relu_().view_as(rows)
        return self.two(rows).transpose(1, 2)


def test_edits_in_place_after_a_tap_under_a_view():
    torch.manual_seed(0)
    engine_only(
        InPlace(), [(torch.randn(5, 3, 4), torch.randn(5)), (torch.randn(2, 3, 4), torch.randn(2))], SumOfSquares()
    )
