"""The random-sign sketch: unbiased, seeded, with the stated relative error."""

import attrs
import pytest
import torch
from fisher_oracle import SumOfSquares, oracle
from torch import nn

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    NonFiniteError,
    Objective,
    SketchedFisher,
    UnsupportedModelError,
)


def problem(batches=8, size=6):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, [(torch.randn(size, 4), torch.randint(0, 3, (size,))) for _ in range(batches)]


def sketch(model, data, **options):
    return SketchedFisher(**options).estimate(model, data, objective=CrossEntropy())


def test_the_mean_over_seeds_is_the_exact_fisher():
    model, data = problem()
    expected = oracle(model, data)
    runs = [sketch(model, data, seed=seed, probes=4).totals for seed in range(25)]
    for name, want in expected.items():
        mean = torch.stack([run[name].double() for run in runs]).mean(0)
        assert float((mean - want).abs().sum() / want.sum()) < 0.1


def test_the_spread_is_within_the_stated_error():
    model, data = problem(batches=16)
    expected, runs = oracle(model, data), [sketch(*problem(batches=16), seed=seed, probes=2) for seed in range(20)]
    for name, want in expected.items():
        spread = torch.stack([run.totals[name].double() for run in runs]).std(0)
        assert float((spread / want).median()) < 1.5 * runs[0].relative_error


def even(data, **options):
    """Sketch one weight whose gradients are all 1 or −1: the bound is its error exactly."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return SketchedFisher(**options).estimate(model, data, objective=Linear())


def signs(*sizes):
    drawn = torch.Generator().manual_seed(0)
    return [(2 * torch.randint(0, 2, (n, 1), generator=drawn).float() - 1,) for n in sizes]


@attrs.frozen
class Linear(Objective):
    """ℓ_i = w·x_i, whose gradient is x_i."""

    def losses(self, model, batch):
        return model(batch[0])[:, 0]


def spread(data, **options):
    runs = [even(data, seed=seed, **options).totals["weight"].item() for seed in range(300)]
    return float(torch.tensor(runs, dtype=torch.float64).std()) / sum(len(x) for (x,) in data)


@pytest.mark.parametrize(("sizes", "probes"), [((4, 4, 4), 1), ((8, 2), 3), ((1, 5, 1, 1), 2)])
def test_relative_error_is_exact_for_evenly_spread_gradients(sizes, probes):
    found = even(signs(*sizes), probes=probes).relative_error
    assert spread(signs(*sizes), probes=probes) == pytest.approx(found, rel=0.12)


def test_relative_error_worked_example():
    assert even(signs(4, 4), probes=2).relative_error == pytest.approx((2 * (12 + 12) / 2) ** 0.5 / 8)
    assert even(signs(1, 1, 1)).relative_error == 0.0
    assert SketchedFisher(probes=2).relative_error({50: 98}) == pytest.approx(0.1)
    bound = (2 / (16 * 2)) ** 0.5
    assert 0.95 * bound < SketchedFisher(probes=2).relative_error({32: 16}) < bound


def test_errors_of_two_passes_with_one_seed_are_correlated():
    """Their variances do not add: if they did, the sum of two equal halves would be off by √½ of the error of one."""
    half = signs(4, 4)
    one = even(half)
    both = one + one
    assert both.relative_error == one.relative_error
    seen = [2 * even(half, seed=seed).totals["weight"].item() / 16 for seed in range(300)]
    assert float(torch.tensor(seen).std()) == pytest.approx(both.relative_error, rel=0.12)


def test_the_error_of_a_sum_is_that_of_its_samples():
    many, one = even(signs(4, 4, 4, 4)), even(signs(1, 1, 1, 1))
    assert (many + one).relative_error == pytest.approx(many.relative_error * 16 / 20)
    assert (one + one).relative_error == 0.0


def test_one_sample_per_batch_is_exact():
    model, data = problem(batches=3, size=1)
    exact = DiagonalFisher().estimate(model, data, objective=CrossEntropy()).totals
    seen = sketch(model, data).totals
    assert all(torch.allclose(seen[n], exact[n], rtol=1e-5) for n in exact)


def test_result_depends_on_the_seed():
    model, data = problem()
    one, same, other = (sketch(model, data, seed=seed).totals["0.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_recurrent_models_need_no_rule():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(2, 3, batch_first=True)

        def forward(self, x):
            return self.cell(x)[0]

    data = [(torch.randn(4, 5, 2), torch.randn(4)) for _ in range(3)]
    assert SketchedFisher().estimate(Recurrent(), data, objective=SumOfSquares()).count == 12


def test_nan_names_parameter_and_batch():
    model, data = problem()
    data[1][0][0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"in batch 1 .*weight"):
        sketch(model, data)


def test_refusals():
    with pytest.raises(ConfigurationError, match="probes"):
        SketchedFisher(probes=0)
    with pytest.raises(ValueError, match="at least one batch"):
        SketchedFisher().relative_error({})
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(UnsupportedModelError):
        sketch(model, problem()[1])
