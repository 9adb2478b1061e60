"""Row layouts that the probe must not guess: ambiguous gradients, and an order that depends on the data."""

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn

from unlearnkit import CrossEntropy, Objective
from unlearnkit.importance import estimate_groups


class Gated(nn.Module):
    """Time-first rows; a row of zeros does not affect the loss."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        rows = self.a(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], len(x)))
        return (rows * (x.abs().sum(2) > 0).t().unsqueeze(2)).sum(0)


def quiet(x):
    """Zero all but one row of the three samples of the probe."""
    x = x.clone()
    x[0, 1:] = 0
    x[1:3] = 0
    return x


class Squared(SumOfSquares):
    """Half the squared output: no gradient where the output is zero."""

    def losses(self, model, batch):
        return 0.5 * model(batch[0]).square().sum(1)


def test_one_nonzero_row_in_the_probe_does_not_determine_the_layout():
    """With a margin loss, most samples have no gradient."""
    torch.manual_seed(0)
    model, x = Gated(), torch.randn(6, 3, 4)
    data = [(quiet(x), torch.randn(6)), (torch.randn(6, 3, 4), torch.randn(6))]
    engine_only(model, data, objective=Squared())


class Twice(nn.Module):
    """Applies one layer to the samples, and again to the samples sorted by their first number."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.a(x[order])[order.argsort()] * self.a(x)


class Once(Twice):
    """Applies the layer to the sorted samples only."""

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.a(x[order])[order.argsort()]


def in_order(size):
    """Samples of which the first three are sorted by their first number and smaller than the others."""
    torch.manual_seed(0)
    x = torch.randn(size, 4)
    x[:3, 0] = torch.tensor([-9.0, -8.0, -7.0])
    return x, torch.randint(0, 5, (size,))


def test_data_dependent_order_is_derived_for_a_weight_used_twice():
    engine_only(Twice(), [in_order(8), shuffled(8)])


def test_data_dependent_order_is_derived_for_groups():
    model, data = Once(), [in_order(8)]
    groups = estimate_groups(model, data, objective=CrossEntropy(), key=-1)
    for key, one in groups.items():
        mine = data[0][1] == key
        expected = oracle(model, [tuple(t[mine] for t in data[0])])
        assert distance(dict(one.totals), expected) < 1e-5


class Folds(nn.Module):
    """Time-first rows for more than four samples, else sample-first rows."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 4)

    def forward(self, x):
        n, x = len(x), x.view(len(x), 2, 2)
        if n > 4:
            return self.a(x.transpose(0, 1).flatten(0, 1)).view(2, n, 4).transpose(0, 1).flatten(1)
        return self.a(x.flatten(0, 1)).view(n, 8)


class Longest(Twice):
    """Sorts the samples by how many of their numbers are above 1."""

    def forward(self, x):
        order = (x > 1).sum(1).argsort(descending=True, stable=True)
        return self.a(x[order])[order.argsort()] * self.a(x)


def shuffled(size):
    torch.manual_seed(0)
    x = torch.randn(size, 4)
    x[:3] = -1
    x[3::2] += 2
    return x, torch.randint(0, 5, (size,))


WHOLE = [(Folds, [4, 9]), (Folds, [9]), (Longest, [8]), (Longest, [3, 8])]


@pytest.mark.parametrize(("make", "sizes"), WHOLE)
def test_layout_is_derived_for_each_batch_size(make, sizes):
    torch.manual_seed(0)
    engine_only(make(), [shuffled(size) for size in sizes])


@pytest.mark.parametrize("recheck", [0, 1])
def test_data_dependent_order_may_change_in_a_later_batch(recheck):
    """Sorting keeps the order of the first batch, and changes that of the second."""
    torch.manual_seed(0)
    model, (x, y) = Longest(), shuffled(8)
    engine_only(model, [(x.clamp(max=0), y), (x, y)], recheck=recheck)


def test_data_dependent_order_without_groups_needs_no_fallback():
    engine_only(Once(), [in_order(8)])


def test_tensors_computed_from_parameters_are_not_data():
    """A low-rank update of a weight is computed from parameters only."""

    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(4, 5).requires_grad_(False)
            self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(5, 2))

        def forward(self, x):
            return nn.functional.linear(x, self.base.weight + self.b @ self.a, self.base.bias)

    torch.manual_seed(0)
    engine_only(Merged(), [in_order(6)])


class Weighed(Objective):
    """Multiplies each sample's loss by a number that the batch holds as text."""

    def losses(self, model, batch):
        x, y, texts = batch
        weights = torch.tensor([float(text) for text in texts], dtype=x.dtype)
        return CrossEntropy().losses(model, (x, y)) * weights


class Mixing(nn.Module):
    """Subtracts the batch mean: falls back to one sample at a time."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x):
        return self.a(x - x.mean(0) * (len(x) > 1))


@pytest.mark.filterwarnings("ignore:.*cannot be proven")
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 5), Mixing])
@pytest.mark.parametrize("chunk", [0, 2])
def test_plain_values_are_sliced_with_their_samples(make, chunk):
    torch.manual_seed(0)
    model, (x, y) = make(), in_order(7)
    numbers = torch.arange(1.0, 8.0)
    seen = estimate(model, [(x, y, [str(float(w)) for w in numbers])], Weighed(), chunk=chunk)
    ones = [(x[i : i + 1], y[i : i + 1], [str(float(w))]) for i, w in enumerate(numbers)]
    assert distance(seen, oracle(model, ones, Weighed())) < 1e-5
