"""A model that begins to mix its samples after the first batch."""

import warnings

import pytest
import torch
from fisher_models import Labelled, everything, mixed
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn

from unlearnkit import CrossEntropy, DiagonalFisher, UnsupportedModelError
from unlearnkit.importance.fisher.engine.passes import SpotChecks


class Later(nn.Module):
    """Keeps its samples apart until one of them is large."""

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
def test_mixing_that_begins_later_is_found_when_that_pass_is_looked_at(words):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match=rf"saw in pass 3 .*{words}.*chunk=1"):
        estimate(Later(WAYS[words]), batches(6, 3), SumOfSquares(), recheck=1)


def test_it_is_not_found_when_nobody_looks():
    """What the pages say: the first batch proves nothing about later ones."""
    torch.manual_seed(0)
    model, data = Later(centred), batches(6, 3)
    assert distance(estimate(model, data, SumOfSquares(), recheck=0), oracle(model, data, SumOfSquares())) > 1e-2


def test_one_sample_in_a_pass_cannot_mix():
    torch.manual_seed(0)
    model, data = Later(centred), batches(4, 2)
    assert (
        distance(estimate(model, data, SumOfSquares(), chunk=1, recheck=1), oracle(model, data, SumOfSquares())) < 1e-4
    )


class Sorted(nn.Module):
    """Brings its samples into the order of their first numbers and back: the totals are right, groups would not be."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.two(self.one(x[order]).tanh()[order.argsort()])


def test_samples_in_another_order_are_followed():
    torch.manual_seed(0)
    data = batches(5, 9)
    for x, _ in data[:1]:
        x[:, 0] = x[:, 0].sort().values
    engine_only(Sorted(), data, objective=SumOfSquares(), recheck=1)


class Shifted(nn.Module):
    """Its rows move from sample to sample when a number is large, by nothing that looks like an index."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, x):
        turn = int(bool((x > 50).any()))
        return self.two(self.one(x.roll(turn, 0)).tanh()).roll(-turn, 0) * self.one.weight.sum()


def test_rows_that_move_without_an_index_are_found_when_that_pass_is_looked_at():
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModelError, match="its rows belong to other samples than they did"):
        estimate(Shifted(), batches(6, 3), SumOfSquares(), recheck=1)


def test_a_model_that_keeps_them_apart_may_be_looked_at_in_every_pass():
    model, data = everything(), mixed(6, 5, 6, 2, 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no rule for")
        expected = estimate(model, data, Labelled(), recheck=0)
        seen = estimate(model, data, Labelled(), recheck=1)
    assert all(torch.equal(seen[name], expected[name]) for name in expected)


@pytest.mark.parametrize("sureness", [1.0, 40.0])
def test_a_very_sure_model_raises_no_alarm(sureness):
    """Losses of zero, and gradients of zero for some of the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight.mul_(sureness)
    data = [(torch.randn(5, 4), torch.randint(0, 3, (5,))) for _ in range(12)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="squares underflow")
        estimate(model, data, CrossEntropy(), recheck=1)


def test_one_pass_of_so_many_is_looked_at():
    for every in (1, 2, 5, 64):
        recheck = SpotChecks(every)
        seen = [index for index in range(20 * every) if recheck.rows(9)]
        assert 0 not in seen
        assert len(seen) == 20 - (every == 1)
        assert [index // every for index in seen] == list(range(every == 1, 20))
    assert not any(SpotChecks(0).rows(9) for _ in range(200))
    first, second = SpotChecks(3), SpotChecks(3)
    assert [first.rows(9) for _ in range(30)] == [second.rows(9) for _ in range(30)]


def test_it_is_on_by_default_and_no_part_of_the_fingerprint():
    model, data = nn.Linear(4, 5), batches(2, 9)
    prints = [
        DiagonalFisher(**options).estimate(model, data, objective=SumOfSquares()).fingerprint
        for options in ({}, {"recheck": 0})
    ]
    assert DiagonalFisher().recheck == 64
    assert prints[0] == prints[1]
