"""What the probe must not take for granted: evidence that fits several layouts, and an order that data decide."""

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn

from unlearnkit import CrossEntropy, Objective
from unlearnkit.importance import estimate_groups


class Gated(nn.Module):
    """Rows of all samples at one time side by side; a row of zeros has no part in the loss."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        rows = self.a(x.transpose(0, 1).flatten(0, 1)).unflatten(0, (x.shape[1], len(x)))
        return (rows * (x.abs().sum(2) > 0).t().unsqueeze(2)).sum(0)


def quiet(x):
    """Leave one row of one sample among those that are probed."""
    x = x.clone()
    x[0, 1:] = 0
    x[1:3] = 0
    return x


class Squared(SumOfSquares):
    """Without a gradient where the output is zero."""

    def losses(self, model, batch):
        return 0.5 * model(batch[0]).square().sum(1)


def test_one_row_in_the_probe_says_nothing_about_the_others():
    """A margin that most samples keep leaves few gradients to see."""
    torch.manual_seed(0)
    model, x = Gated(), torch.randn(6, 3, 4)
    data = [(quiet(x), torch.randn(6)), (torch.randn(6, 3, 4), torch.randn(6))]
    engine_only(model, data, objective=Squared())


class Twice(nn.Module):
    """One layer on the samples as they come, and once more in the order of their first numbers."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.a(x[order])[order.argsort()] * self.a(x)


class Once(Twice):
    """The same once."""

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.a(x[order])[order.argsort()]


def in_order(size):
    """Samples of which the first three are in the order of their first numbers already, and the others are not."""
    torch.manual_seed(0)
    x = torch.randn(size, 4)
    x[:3, 0] = torch.tensor([-9.0, -8.0, -7.0])
    return x, torch.randint(0, 5, (size,))


def test_an_order_that_the_data_decide_is_derived_where_a_weight_is_used_twice():
    engine_only(Twice(), [in_order(8), shuffled(8)])


def test_and_where_groups_are_asked_for():
    model, data = Once(), [in_order(8)]
    groups = estimate_groups(model, data, objective=CrossEntropy(), key=-1)
    for key, one in groups.items():
        mine = data[0][1] == key
        expected = oracle(model, [tuple(t[mine] for t in data[0])])
        assert distance(dict(one.totals), expected) < 1e-5


class Folds(nn.Module):
    """Lays its rows out by time when there are more than four samples, and by sample when there are fewer."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 4)

    def forward(self, x):
        n, x = len(x), x.view(len(x), 2, 2)
        if n > 4:
            return self.a(x.transpose(0, 1).flatten(0, 1)).view(2, n, 4).transpose(0, 1).flatten(1)
        return self.a(x.flatten(0, 1)).view(n, 8)


class Longest(Twice):
    """The samples in the order of how many of their numbers are large; of many samples that is another order."""

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
def test_rows_are_derived_anew_where_they_differ_between_sizes(make, sizes):
    torch.manual_seed(0)
    engine_only(make(), [shuffled(size) for size in sizes])


@pytest.mark.parametrize("recheck", [0, 1])
def test_and_where_the_data_decide_otherwise_in_a_later_batch(recheck):
    """The first batch keeps the order of all samples; in the second the data decide otherwise."""
    torch.manual_seed(0)
    model, (x, y) = Longest(), shuffled(8)
    engine_only(model, [(x.clamp(max=0), y), (x, y)], recheck=recheck)


def test_elsewhere_it_does_no_harm_and_costs_nothing():
    engine_only(Once(), [in_order(8)])


def test_frozen_weights_are_no_data():
    """A low-rank update that is added to the weight itself is made of parameters alone."""

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
    """Each sample's loss times a number that stands beside it, written out."""

    def losses(self, model, batch):
        x, y, texts = batch
        weights = torch.tensor([float(text) for text in texts], dtype=x.dtype)
        return CrossEntropy().losses(model, (x, y)) * weights


class Mixing(nn.Module):
    """Goes the slow way."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 5)

    def forward(self, x):
        return self.a(x - x.mean(0) * (len(x) > 1))


@pytest.mark.filterwarnings("ignore:.*cannot be proven")
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 5), Mixing])
@pytest.mark.parametrize("chunk", [0, 2])
def test_plain_values_go_with_their_samples(make, chunk):
    torch.manual_seed(0)
    model, (x, y) = make(), in_order(7)
    numbers = torch.arange(1.0, 8.0)
    seen = estimate(model, [(x, y, [str(float(w)) for w in numbers])], Weighed(), chunk=chunk)
    ones = [(x[i : i + 1], y[i : i + 1], [str(float(w))]) for i, w in enumerate(numbers)]
    assert distance(seen, oracle(model, ones, Weighed())) < 1e-5
