"""Cross-sample dependence that begins after the first batch."""

import warnings

import pytest
import torch
from fisher_models import Labelled, everything, mixed
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher, UnsupportedModelError
from unlearnkit.importance.fisher.engine.passes import SpotChecks


class Later(nn.Module):
    """Samples are independent until one of them is large."""

    def __init__(self, how):
        super().__init__()
        self.one, self.two, self._how = nn.Linear(4, 6), nn.Linear(6, 5), how

    def forward(self, x):
        x, large = self.one(x), bool((x > 50).any())
        return self.two(self._how(x).tanh() if large else x.tanh())


def centred(x):
    return x - x.mean(0) * (len(x) > 1)


def batches(count, first_large, size=6):
    torch.manual_seed(1)
    found = [(torch.randn(size, 4), torch.randn(size)) for _ in range(count)]
    for x, _ in found[first_large:]:
        x[2, 1] = 100
    return found


WAYS = {
    "(its rows belong to other samples|the losses, which are others within)": centred,
    "the losses, which are others within": lambda x: x * (1 + (len(x) > 3)),
}


@pytest.mark.parametrize("words", WAYS)
def test_later_dependence_is_detected_in_a_checked_pass(words):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=rf"saw in pass 3 .*{words}.*chunk=1"):
        estimate(Later(WAYS[words]), batches(6, 3), SumOfSquares(), recheck=1)


def test_later_dependence_is_missed_without_recheck():
    """As documented, the first batch proves nothing about later ones."""
    torch.manual_seed(0)
    model, data = Later(centred), batches(6, 3)
    assert distance(estimate(model, data, SumOfSquares(), recheck=0), oracle(model, data, SumOfSquares())) > 1e-2


def test_passes_of_one_sample_are_exact_without_checks():
    torch.manual_seed(0)
    model, data = Later(centred), batches(4, 2)
    assert (
        distance(estimate(model, data, SumOfSquares(), chunk=1, recheck=1), oracle(model, data, SumOfSquares())) < 1e-4
    )


class Sorted(nn.Module):
    """Sorts its samples by their first number and back: totals are right without tracking, groups would not be."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.two(self.one(x[order]).tanh()[order.argsort()])


def test_sorted_samples_are_supported():
    torch.manual_seed(0)
    data = batches(5, 9)
    for x, _ in data[:1]:
        x[:, 0] = x[:, 0].sort().values
    engine_only(Sorted(), data, objective=SumOfSquares(), recheck=1)


class Shifted(nn.Module):
    """Shifts its rows to other samples when a number is large, without an index operation."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        turn = int(bool((x > 50).any()))
        return self.two(self.one(x.roll(turn, 0)).tanh()).roll(-turn, 0) * self.one.weight.sum()


def test_shifted_rows_are_detected_in_a_checked_pass():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="its rows belong to other samples than they did"):
        estimate(Shifted(), batches(6, 3), SumOfSquares(), recheck=1)


def test_rechecking_every_pass_changes_no_total():
    model, data = everything(), mixed(6, 5, 6, 2, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no rule for")
        expected = estimate(model, data, Labelled(), recheck=0)
        seen = estimate(model, data, Labelled(), recheck=1)
    assert all(torch.equal(seen[name], expected[name]) for name in expected)


@pytest.mark.parametrize("sureness", [1.0, 40.0])
def test_confident_model_is_no_false_alarm(sureness):
    """Losses of zero, and gradients of zero for some of the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(sureness)
    data = [(torch.randn(5, 4), torch.randint(0, 3, (5,))) for _ in range(12)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="squares underflow")
        estimate(model, data, CrossEntropy(), recheck=1)


def test_one_pass_in_each_period_is_checked():
    for every in (1, 2, 5, 64):
        recheck = SpotChecks(every)
        seen = [index for index in range(20 * every) if recheck.rows(9)]
        assert 0 not in seen
        assert len(seen) == 20 - (every == 1)
        assert [index // every for index in seen] == list(range(every == 1, 20))
    assert not any(SpotChecks(0).rows(9) for _ in range(200))
    first, second = SpotChecks(3), SpotChecks(3)
    assert [first.rows(9) for _ in range(30)] == [second.rows(9) for _ in range(30)]


def test_recheck_is_on_by_default_and_not_in_the_fingerprint():
    model, data = nn.Linear(4, 5), batches(2, 9)
    prints = [
        DiagonalFisher(**options).estimate(model, data, objective=SumOfSquares()).fingerprint
        for options in ({}, {"recheck": 0})
    ]
    assert DiagonalFisher().recheck == 64
    assert prints[0] == prints[1]
