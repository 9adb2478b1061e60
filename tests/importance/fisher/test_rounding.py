"""Rounding of sums and squares, and the warnings about it."""

import warnings

import attrs
import pytest
import torch
from fisher_oracle import SumOfSquares, distance, estimate, oracle
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from unlearnkit import DiagonalFisher, Objective, UnlearnKitWarning
from unlearnkit.importance.fisher.engine.totals import Totals, add_exactly


@attrs.frozen
class Linear(Objective):
    """A loss whose gradient is the batch."""

    factor: float = 1.0

    def losses(self, model, batch):
        return (model.weight * batch[0]).sum(1) * self.factor


class Row(nn.Module):
    """One row of weights."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


def total(batches, **options):
    return DiagonalFisher(**options).estimate(Row(1), batches, objective=Linear()).totals["weight"]


def nasty():
    """2²⁴, then a thousand ones: float32 rounds each of them away."""
    return [(torch.full((1, 1), 4096.0),), *[(torch.ones(1, 1),)] * 1000]


def test_float32_sum_loses_small_terms_that_float64_and_compensated_keep():
    assert float(total(nasty())) == 2**24
    assert float(total(nasty(), accumulate="float64")) == 2**24 + 1000
    compensated = total(nasty(), accumulate="compensated")
    assert float(compensated) == 2**24 + 1000
    assert compensated.dtype == torch.float32


@given(st.lists(st.floats(0, 2.0**100, width=32), min_size=1, max_size=40))
def test_compensated_sum_is_as_accurate_as_float64(terms):
    t = Totals({"w": torch.zeros(1)}, double=False, memory=1, compensated=True)
    for term in terms:
        t.begin()
        t.buffer("w", "plain", (1,), lambda b: b).add_(term)
        t.commit()
    exact = torch.tensor(terms, dtype=torch.float64).sum()
    assert float(t.result()["w"]) == pytest.approx(float(exact), rel=1.2e-7, abs=0)


def test_two_sums_over_several_pieces():
    torch.manual_seed(0)
    n = (1 << 16) + 7
    total_, lost = torch.randn(n), torch.zeros(n)
    exact = total_.double()
    for _ in range(5):
        term = torch.randn(n) * 1e4
        exact += term.double()
        add_exactly(total_, lost, term.clone())
    assert float((total_.double() + lost.double() - exact).abs().max()) < 1e-9


def test_compensation_does_not_change_what_is_estimated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2))
    data = [(torch.randn(4, 2, 5, 5), torch.randn(4)) for _ in range(3)]
    seen = estimate(model, data, SumOfSquares(), accumulate="compensated")
    assert distance(seen, oracle(model, data, SumOfSquares())) < 1e-6


@pytest.mark.parametrize("sizes", [(4, 4), (1, 1)])
def test_squares_that_vanish_are_counted_for_each_parameter(sizes):
    """Gradients of 1e-25 and 1e-20: their squares are 0 and subnormal in float32."""
    rows = torch.tensor([1e-25, 1e-20, 1.0, 0.0])
    data = [(rows.expand(n, 4).clone(),) for n in sizes]
    with pytest.warns(
        UnlearnKitWarning, match=r"underflow in float32.*weight \(2 of 4\).*accumulate='float64'"
    ) as seen:
        DiagonalFisher().estimate(Row(4), data, objective=Linear())
    assert len(seen) == 1


@pytest.mark.parametrize("options", [{"accumulate": "float64"}, {}])
def test_no_warning_without_underflow(options):
    rows = torch.tensor([1e-25, 1e-20, 1.0, 0.0]) if options else torch.tensor([1e-15, 0.0, 1.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiagonalFisher(**options).estimate(Row(4), [(rows.expand(3, 4).clone(),)], objective=Linear())


def test_tiny_gradients_beside_large_ones_do_not_warn():
    rows = torch.tensor([[1e-25], [1.0], [1.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DiagonalFisher().estimate(Row(1), [(rows,)], objective=Linear())
