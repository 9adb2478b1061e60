"""Totals per group and the other statistics of one pass, each against a slow reference."""

import attrs
import pytest
import torch
from fisher_models import Labelled, everything, mixed
from fisher_oracle import SumOfSquares, distance, oracle
from torch import nn

from unlearnkit import BatchedDiagonalFisher, CrossEntropy, DiagonalFisher, MismatchError, Objective, UnlearnKitWarning
from unlearnkit.data.batches import take
from unlearnkit.importance import estimate_groups, fisher_statistics

pytestmark = pytest.mark.filterwarnings("ignore:no rule for")


def of_group(data, key):
    return [take(batch, (batch[-1] == key).nonzero()[:, 0]) for batch in data if bool((batch[-1] == key).any())]


@pytest.mark.parametrize("options", [{}, {"chunk": 3}, {"accumulate": "compensated"}])
def test_each_group_has_the_totals_that_it_has_alone(options):
    model, data = everything(), mixed(7, 4, 1)
    groups = estimate_groups(model, data, objective=Labelled(), key=-1, fisher=DiagonalFisher(**options))
    assert sorted(groups) == [0, 1, 2]
    for key, seen in groups.items():
        alone = of_group(data, key)
        assert distance(seen.totals, oracle(model, alone, Labelled())) < 1e-9
        assert seen.count == seen.samples == sum(len(batch[-1]) for batch in alone)


def test_groups_add_up_to_the_whole_and_are_of_its_kind():
    model, data = everything(), mixed(6, 5)
    found = fisher_statistics(model, data, objective=Labelled(), key=-1, role="full")
    plain = DiagonalFisher().estimate(model, data, objective=Labelled(), role="full")
    sum_ = sum(list(found.groups.values())[1:], next(iter(found.groups.values())))
    for other in (sum_, plain):
        assert distance(other.totals, dict(found.importance.totals)) < 1e-12
    assert found.importance.fingerprint == plain.fingerprint
    assert found.importance.trail == plain.trail
    rest = plain - found.groups[2]
    assert distance(rest.totals, oracle(model, of_group(data, 0) + of_group(data, 1), Labelled())) < 1e-9


@pytest.mark.parametrize("chunk", [0, 4])
def test_the_gradient_of_the_batch_and_its_square(chunk):
    model, data = everything(), mixed(7, 5, 1)
    found = fisher_statistics(model, data, objective=Labelled(), gradient=True, fisher=DiagonalFisher(chunk=chunk))
    batched = BatchedDiagonalFisher().estimate(model, data, objective=Labelled())
    assert distance(found.batched.totals, dict(batched.totals)) < 1e-9
    found.batched.check_same_kind(batched)
    assert found.batched.count == batched.count
    named = dict(model.named_parameters())
    loss = sum(Labelled().losses(model, batch).sum() for batch in data) / 13
    expected = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    for (name, p), g in zip(named.items(), expected, strict=True):
        assert torch.allclose(found.gradient[name], torch.zeros_like(p) if g is None else g, atol=1e-12), name
    assert distance(found.importance.totals, oracle(model, data, Labelled())) < 1e-9


def absolute_oracle(model, data, objective):
    totals = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for batch in data:
        for i in range(len(batch[-1])):
            loss = objective.losses(model, take(batch, slice(i, i + 1))).sum()
            found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            for total, g in zip(totals.values(), found, strict=True):
                total.add_(0 if g is None else g.abs())
    return totals


def test_absolute_gradients():
    model, data = everything(), mixed(5, 4, 1)
    found = fisher_statistics(model, data, objective=Labelled(), absolute=True, key=lambda batch: ["a"] * len(batch[0]))
    assert (
        distance(found.absolute.totals, absolute_oracle(model, data, Labelled())) < 1e-6
    )  # a bias before a norm has rounding errors for gradients
    assert distance(found.groups["a"].totals, dict(found.importance.totals)) == 0


class Loops(nn.Module):
    """A recurrent network on packed sequences, which falls back to one sample at a time."""

    def __init__(self):
        super().__init__()
        self.cell, self.unused = nn.LSTM(2, 3, batch_first=True), nn.Parameter(torch.ones(2))

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, [4] * len(x), batch_first=True)
        return self.cell(packed)[1][0][-1]


def test_fallback_supports_every_statistic():
    torch.manual_seed(0)
    model = Loops().double()
    data = [(torch.randn(n, 4, 2).double(), torch.arange(n) % 2, torch.randn(n).double()) for n in (5, 4)]

    @attrs.frozen
    class Inner(Objective):
        def losses(self, model, batch):
            return SumOfSquares().losses(model, (batch[0], batch[-1]))

    with pytest.warns(UnlearnKitWarning, match="cannot be proven"):
        found = fisher_statistics(model, data, objective=Inner(), key=1, absolute=True, gradient=True)
    for key in (0, 1):
        alone = [take(batch, (batch[1] == key).nonzero()[:, 0]) for batch in data]
        assert distance(found.groups[key].totals, oracle(model, alone, Inner())) < 1e-9
    assert distance(found.absolute.totals, absolute_oracle(model, data, Inner())) < 1e-9
    batched = BatchedDiagonalFisher().estimate(model, data, objective=Inner())
    assert distance(found.batched.totals, dict(batched.totals)) < 1e-9
    assert float(found.gradient["unused"].abs().sum()) == 0


def test_keys_are_one_for_each_sample():
    model, data = nn.Linear(3, 3), [(torch.randn(4, 3), torch.arange(4) % 3)]
    for key in (0, lambda _: [1, 2]):
        with pytest.raises(MismatchError, match="one hashable key for each of the 4 samples"):
            estimate_groups(model, data, objective=CrossEntropy(), key=key)


def test_keys_match_prefetched_batches():
    model, data = nn.Linear(3, 3), [(torch.randn(n, 3), torch.arange(n) % 3) for n in (4, 2, 3)]
    ahead = lambda batches, what, total: list(batches)  # noqa: ARG005, E731
    seen = estimate_groups(model, data, objective=CrossEntropy(), key=1, progress=ahead)
    expected = estimate_groups(model, data, objective=CrossEntropy(), key=1)
    assert all(torch.equal(seen[k].totals["weight"], expected[k].totals["weight"]) for k in expected)


def test_statistics_are_none_unless_requested():
    model = nn.Linear(3, 3)
    found = fisher_statistics(model, [(torch.randn(4, 3), torch.arange(4) % 3)], objective=CrossEntropy())
    assert (found.absolute, found.gradient, found.batched, dict(found.groups)) == (None, None, None, {})
    assert repr(found).endswith("groups=0, and no more)")
