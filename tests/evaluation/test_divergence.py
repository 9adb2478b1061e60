"""Jensen-Shannon, activation distance and ZRF."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from unlearnkit.evaluation.metrics.proxies import zero_retrain_forgetting
from unlearnkit.evaluation.metrics.retrain_gap import activation_distance
from unlearnkit.evaluation.per_sample import LN2, jensen_shannon
from unlearnkit.utils.errors import MismatchError

WEIGHTS = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 1e-3)


def rows(seed, n=7, classes=5):
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), size=n)


def js_oracle(p, q):
    """One class at a time, in Python's own floats."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += (a * math.log(a / m) if a else 0) / 2 + (b * math.log(b / m) if b else 0) / 2
    return total


def test_worked_example():
    # m = (3/4, 1/4): ½·ln(4/3) + ½·(½·ln(2/3) + ½·ln 2)
    expected = 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)
    assert jensen_shannon([[1.0, 0.0]], [[0.5, 0.5]])[0] == pytest.approx(expected, abs=1e-15)
    assert activation_distance([[1.0, 0.0]], [[0.0, 1.0]]) == pytest.approx(math.sqrt(2))


def test_they_agree_with_the_oracle_and_with_scipy():
    p, q = rows(0), rows(1)
    found = jensen_shannon(p, q)
    assert found == pytest.approx([js_oracle(a, b) for a, b in zip(p, q, strict=True)], abs=1e-15)
    assert found == pytest.approx(jensenshannon(p, q, axis=1) ** 2, abs=1e-12)
    distances = [math.dist(a, b) for a, b in zip(p, q, strict=True)]
    assert activation_distance(p, q) == pytest.approx(sum(distances) / len(distances))


@settings(max_examples=200)
@given(WEIGHTS, WEIGHTS, st.integers(0, 5))
def test_bounds_symmetry_and_padding(a, b, padding):
    p, q = (np.array([w]) / sum(w) for w in (a, b))
    found = jensen_shannon(p, q)[0]
    assert 0 <= found <= LN2
    assert found == jensen_shannon(q, p)[0]
    assert jensen_shannon(p, p)[0] == 0
    wide_p, wide_q = (np.pad(x, ((0, 0), (0, padding))) for x in (p, q))
    assert jensen_shannon(wide_p, wide_q)[0] == pytest.approx(found, abs=1e-15)


def test_zrf_is_between_0_and_1():
    p = rows(2)
    assert zero_retrain_forgetting(p, p) == 1
    assert zero_retrain_forgetting([[1.0, 0.0]], [[0.0, 1.0]]) == pytest.approx(0)
    assert zero_retrain_forgetting(p, rows(3)) == pytest.approx(
        1 - np.mean([js_oracle(a, b) for a, b in zip(p, rows(3), strict=True)]) / math.log(2)
    )


@pytest.mark.parametrize("measure", [jensen_shannon, activation_distance, zero_retrain_forgetting])
def test_other_samples_or_classes_are_refused(measure):
    with pytest.raises(MismatchError, match="the same samples and classes"):
        measure(rows(0, n=2), rows(0, n=3))
