"""Losses in bfloat16: near enough, wide where it matters, and never mixed with others."""

import pytest
import torch
from fisher_oracle import oracle
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher, MismatchError
from unlearnkit.precision import Autocast


def scene():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 3))
    return model.eval(), [(torch.randn(8, 2, 6, 6), torch.randint(3, (8,))) for _ in range(2)]


def estimate(objective, batches=None):
    model, data = scene()
    return DiagonalFisher().estimate(model, batches or data, objective=objective)


def test_totals_are_float32_and_near_the_oracle_in_float64():
    model, batches = scene()
    expected, seen, wide = oracle(model, batches), estimate(Autocast()).totals, estimate(CrossEntropy()).totals
    for name, total in seen.items():
        assert total.dtype == torch.float32
        error = float((total.double() - expected[name]).norm() / expected[name].norm())
        assert error < 0.05
        assert not torch.equal(total, wide[name])


def test_batch_size_does_not_matter_beyond_the_rounding_of_bfloat16():
    _, batches = scene()
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]
    whole, one_by_one = estimate(Autocast()).totals, estimate(Autocast(), singles).totals
    for name, total in whole.items():
        assert float((total - one_by_one[name]).norm() / total.norm()) < 0.02


def test_importances_of_two_precisions_do_not_meet():
    with pytest.raises(MismatchError, match=r'objective: "Autocast\(objective=CrossEntropy'):
        estimate(Autocast()).merge(estimate(CrossEntropy()))


def test_autocast_is_off_again_after_an_error():
    class Broken(nn.Module):
        def forward(self, _):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Autocast().losses(Broken(), (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)))
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.gpu
def test_on_a_gpu():
    model, batches = scene()
    expected = oracle(model, batches)
    seen = DiagonalFisher().estimate(model.cuda(), batches, objective=Autocast()).totals
    for name, total in seen.items():
        assert float((total.cpu().double() - expected[name]).norm() / expected[name].norm()) < 0.05
