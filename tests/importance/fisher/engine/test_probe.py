"""The probe compares random projections of totals instead of copies, and still detects wrong totals."""

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, estimate, oracle
from torch import nn

from unlearnkit import UnlearnKitWarning
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError
from unlearnkit.importance.fisher.engine.per_sample_fallback import Comparison, projected

LARGE = (300, 200)


def gradients(shape=LARGE, samples=3, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(samples, *shape, dtype=dtype) * torch.rand(shape, dtype=dtype) ** 4


def compared(total, per_sample, precision=torch.float32):
    comparison = Comparison({"weight": total})
    for g in per_sample:
        comparison.receive("weight", g.unsqueeze(0))
    comparison.verdict(precision)


@pytest.mark.parametrize("shape", [(7,), LARGE, (20_001,), (3, 30_001), (1, 100_003), ()])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_correct_totals_pass(shape, precision):
    g = gradients(shape, dtype=precision)
    compared(g.square().sum(0), g, precision)
    compared((g.double().square().sum(0) * (1 + 1e-7 * torch.randn(shape))).to(precision), g, precision)


WRONG = {
    "factor": lambda g: 1.05 * g.square().sum(0),
    "mean gradient": lambda g: g.sum(0).square() / len(g),
    "one sample missing": lambda g: g[1:].square().sum(0),
    "rows missing": lambda g: g.square().sum(0).index_fill(0, torch.tensor([2, 9, 17]), 0),
    "rows in another order": lambda g: g.square().sum(0).roll(1, 0),
    "neighbours exchanged": lambda g: g.square().sum(0).view(-1, 2).flip(1).reshape(g.shape[1:]),
    "transposed": lambda g: g.square().sum(0).t().reshape(g.shape[1:]),
    "mixed": lambda g: (g - 0.2 * g.mean(0)).square().sum(0),
    "the same sum everywhere": lambda g: g.square().sum(0).mean().expand(g.shape[1:]),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("shape", [LARGE, (20, 30)])
def test_wrong_totals_are_detected(kind, shape):
    g = gradients(shape)
    with pytest.raises(UnprovenError, match=r"weight: the totals of .* relative difference"):
        compared(WRONG[kind](g), g)


def test_projection_depends_on_values_and_shape_only():
    t = torch.randn(70, 5, 300, dtype=torch.float64)
    strided = t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not strided.is_contiguous()
    assert torch.allclose(projected(strided), projected(t), rtol=1e-12)
    assert torch.allclose(projected(strided, square=True), projected(t.square()), rtol=1e-12)
    assert len(projected(t)) * 64 >= t.numel() > (len(projected(t)) - 1) * 64


def test_projections_are_additive():
    g = gradients()
    comparison = Comparison()
    for one in g:
        comparison.expect("weight", one.square())
    comparison.receive_squares("weight", g.square().sum(0))
    comparison.verdict(torch.float32)


class Leaks(nn.Module):
    """Large layers; adds a small share of the batch mean to every sample."""

    def __init__(self, share):
        super().__init__()
        self.one, self.two, self.share = nn.Linear(200, 300), nn.Linear(300, 5), share

    def forward(self, x):
        x = self.one(x).tanh()
        return self.two(x + self.share * (x.mean(0) - x) if len(x) > 1 else x)


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_weak_cross_sample_dependence_is_detected(share):
    torch.manual_seed(0)
    model, data = Leaks(share), [(torch.randn(6, 200), torch.randn(6))]
    with pytest.warns(UnlearnKitWarning, match="cannot be proven to keep its samples apart"):
        seen = estimate(model, data, SumOfSquares())
    assert distance(seen, oracle(model, data, SumOfSquares())) < 1e-4


def test_a_model_with_one_large_weight_alone_is_compared():
    """The smallest is compared, however large; there may be no other, as in a head or a tied embedding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 600), nn.Tanh(), nn.Linear(600, 500, bias=False))
    model[0].requires_grad_(requires_grad=False)
    data = [(torch.randn(3, 4), torch.randn(3))]
    assert distance(estimate(model, data, SumOfSquares()), oracle(model, data, SumOfSquares())) < 1e-6
