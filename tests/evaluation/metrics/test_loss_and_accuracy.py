"""Intervals: their ends, and what they cover."""

import numpy as np
import pytest
from scipy.stats import norm

from unlearnkit.evaluation import mean_interval, proportion_interval
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError


def test_wilson_by_its_formula():
    right, z = np.repeat([1.0, 0.0], [7, 3]), norm.ppf(0.975)
    n, p = 10, 0.7
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = proportion_interval(right)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.covers == "samples"


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_interval_of_all_or_none_correct_has_positive_width(value):
    found = proportion_interval([value] * 20)
    assert found.high - found.low > 0.1
    assert 0 <= found.low <= value <= found.high <= 1


def test_the_bootstrap_against_a_slow_one():
    values = np.random.default_rng(0).exponential(size=80)
    found = mean_interval(values, seed=1, covers="training seeds")
    random = np.random.default_rng(2)
    means = sorted(float(np.mean([values[i] for i in random.integers(80, size=80)])) for _ in range(4000))
    assert found.low == pytest.approx(means[100], abs=0.03)
    assert found.high == pytest.approx(means[3900], abs=0.03)
    assert found.covers == "training seeds"
    assert found == mean_interval(values, seed=1, covers="training seeds") != mean_interval(values, seed=2)


def test_interval_has_the_stated_coverage():
    random = np.random.default_rng(0)
    hits = [i.low <= 0.3 <= i.high for i in (proportion_interval(random.random(60) < 0.3) for _ in range(400))]
    assert 0.92 < np.mean(hits) < 0.98


def test_invalid_intervals_are_refused():
    with pytest.raises(ConfigurationError, match="at least 2 values, saw 1"):
        mean_interval([1.0])
    with pytest.raises(ConfigurationError, match="0 or 1 for each sample"):
        proportion_interval([0.5])
    for level in (0.0, 1.0):
        with pytest.raises(ConfigurationError, match="a share between 0 and 1"):
            mean_interval([1.0, 2.0], level=level)
    with pytest.raises(UnlearnKitError, match="at least one value"):
        proportion_interval([])
