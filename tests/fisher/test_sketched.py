"""The random-sign sketch: unbiased, seeded, and as far off as it says."""

import pytest
import torch
from fisher_oracle import SumOfSquares, oracle
from torch import nn

from unlearnkit import (
    ConfigurationError,
    CrossEntropy,
    DiagonalFisher,
    MismatchError,
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
    expected, estimator = oracle(model, data), SketchedFisher(probes=2)
    runs = [sketch(model, data, seed=seed, probes=2).totals for seed in range(20)]
    for name, want in expected.items():
        spread = torch.stack([run[name].double() for run in runs]).std(0)
        assert float((spread / want).median()) < 1.5 * estimator.relative_error(16)


def test_a_result_says_its_error():
    model, data = problem(batches=8)
    estimator = SketchedFisher(probes=4)
    result = estimator.estimate(model, data, objective=CrossEntropy())
    assert estimator.relative_error(result) == estimator.relative_error(8) == 0.25
    half = estimator.estimate(model, data[:4], objective=CrossEntropy())
    assert estimator.relative_error(half) > 0.25
    with pytest.raises(MismatchError, match=r"an importance of sketched-fisher with probes=1.*saw one of .*probes=4"):
        SketchedFisher().relative_error(result)
    with pytest.raises(MismatchError, match="saw one of diagonal-fisher"):
        estimator.relative_error(DiagonalFisher().estimate(model, data, objective=CrossEntropy()))


def test_one_sample_per_batch_is_exact():
    model, data = problem(batches=3, size=1)
    exact = DiagonalFisher().estimate(model, data, objective=CrossEntropy()).totals
    seen = sketch(model, data).totals
    assert all(torch.allclose(seen[n], exact[n], rtol=1e-5) for n in exact)


def test_the_seed_decides():
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


def test_refusals():
    with pytest.raises(ConfigurationError, match="probes"):
        SketchedFisher(probes=0)
    with pytest.raises(ValueError, match="at least one batch"):
        SketchedFisher().relative_error(0)
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3))
    with pytest.raises(UnsupportedModelError):
        sketch(model, problem()[1])
