"""Metrics of populations of models: U-LiRA, the ε-score and KLOM."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from unlearnkit.evaluation import epsilon_scores, forgetting_quality, ulira
from unlearnkit.evaluation.membership.model_populations import BINS, SMOOTHING, klom
from unlearnkit.utils.errors import ConfigurationError, MismatchError


def phi(seed, models=6, samples=10, shift=0.0):
    return np.random.default_rng(seed).normal(size=(models, samples)) + shift


def test_ulira_of_equal_models_is_one_half():
    assert ulira(phi(0), phi(0)).auc == 0.5
    assert ulira(np.ones((3, 2)), np.ones((3, 2))).auc == 0.5


def test_ulira_detects_remaining_information():
    found = ulira(phi(0, models=12, samples=40, shift=3), phi(1, models=12, samples=40))
    assert found.auc > 0.95
    assert found.tpr > 0.4
    assert 0.4 < ulira(phi(0, models=20, samples=50), phi(1, models=20, samples=50)).auc < 0.6


def test_ulira_worked_example():
    # One sample, three models of each kind: the others of model 0 are 1, 3 against 10, 12: N(2, √2) and N(11, √2).
    u, r = np.array([[2.0], [1.0], [3.0]]), np.array([[11.0], [10.0], [12.0]])
    fits = norm(2, math.sqrt(2)), norm(11, math.sqrt(2))
    assert fits[0].logpdf(2) - fits[1].logpdf(2) == pytest.approx(81 / 4)
    assert ulira(u, r).auc == 1.0
    assert ulira(u, r).tpr is None
    assert "at least 100 non-members, saw 3" in ulira(u, r).reason


def test_ulira_uses_each_samples_own_fit():
    # Both kinds have the same values over all samples, paired differently: no population attack could tell them apart.
    low, high = phi(0, 12, 30, -4), phi(1, 12, 30, 4)
    u, r = np.hstack([low, high]), np.hstack([phi(2, 12, 30, 4), phi(3, 12, 30, -4)])
    assert ulira(u, r).auc > 0.99


@pytest.mark.parametrize(("one", "two"), [((2, 4), (2, 4)), ((3, 4), (4, 4)), ((3, 4), (3, 5))])
def test_ulira_refuses(one, two):
    with pytest.raises(MismatchError, match="ulira: expected two arrays of one shape"):
        ulira(np.zeros(one), np.zeros(two))


def test_epsilon_worked_example():
    # Retrained 0 1 2 9, unlearned 1.5 3 4 5. "≥ 1.5": FPR 2/4, FNR 0, does not count; "≥ 3": 1/4 and 1/4.
    r, u = np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([[1.5], [3.0], [4.0], [5.0]])
    assert epsilon_scores(r, u, delta=0.0)[0] == pytest.approx(math.log(0.75 / 0.25))
    assert epsilon_scores(r, u, delta=0.25)[0] == pytest.approx(math.log(0.5 / 0.25))


def test_epsilon_of_two_thresholds():
    # Unlearned in the middle of retrained: no single threshold is free of error, a likelihood ratio is.
    r, u = np.array([[-9.0], [-8.0], [8.0], [9.0]]), np.array([[-0.2], [-0.1], [0.1], [0.2]])
    assert epsilon_scores(r, u)[0] == math.inf


def test_epsilon_is_symmetric_and_grows():
    one, two = phi(0, 30, 5), phi(1, 30, 5, shift=1)
    assert epsilon_scores(one, two) == pytest.approx(epsilon_scores(two, one))
    assert epsilon_scores(one, one).tolist() == [0.0] * 5
    assert (epsilon_scores(one, two) <= epsilon_scores(one, phi(1, 30, 5, shift=9))).all()
    assert np.isinf(epsilon_scores(one, phi(1, 30, 5, shift=9))).all()


def test_epsilon_refuses():
    with pytest.raises(ConfigurationError, match="0 ≤ delta < 1"):
        epsilon_scores(phi(0), phi(1), delta=1.0)
    with pytest.raises(MismatchError, match="at least two models of each kind"):
        epsilon_scores(phi(0, models=1), phi(1))
    with pytest.raises(MismatchError, match="at least two models of each kind"):
        epsilon_scores(phi(0, samples=3), phi(1))


@pytest.mark.parametrize(
    ("epsilons", "expected"),
    [
        ([0.0], 1.0),
        ([0.49], 1.0),
        ([0.5], 0.5),
        ([1.2], 0.25),
        ([6.0], 2.0**-12),
        ([math.inf, 0.0], (1 + 2.0**-12) / 2),
    ],
)
def test_forgetting_quality(epsilons, expected):
    assert forgetting_quality(epsilons) == pytest.approx(expected)


def klom_oracle(r, u):
    low, high = min(*r, *u), max(*r, *u)
    counts = [[SMOOTHING] * BINS, [SMOOTHING] * BINS]
    for side, values in enumerate((r, u)):
        for v in values:
            counts[side][min(BINS - 1, int((v - low) / (high - low) * BINS))] += 1 / len(values)
    p, q = ([c / sum(side) for c in side] for side in counts)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_klom_agrees_with_the_oracle():
    r, u = phi(0, 50, 4), phi(1, 40, 4, shift=0.5)
    assert klom(r, u) == pytest.approx([klom_oracle(r[:, i].tolist(), u[:, i].tolist()) for i in range(4)], rel=1e-9)


def test_klom_of_equal_and_of_disjoint_populations():
    one = phi(0, 20, 3)
    assert klom(one, one).tolist() == [0.0] * 3
    assert klom(np.ones((3, 1)), np.ones((5, 1))).tolist() == [0.0]
    # All of one in a bin where the other has 10⁻⁵/(1 + 20·10⁻⁵).
    far = klom(np.zeros((4, 1)), np.ones((4, 1)))[0]
    p, q = (1 + SMOOTHING) / (1 + BINS * SMOOTHING), SMOOTHING / (1 + BINS * SMOOTHING)
    assert far == pytest.approx((p - q) * math.log(p / q))
    assert klom([[1e6], [1e6]], [[100.0], [100.0]])[0] == 0  # both are clipped to 100


def test_klom_refuses():
    with pytest.raises(MismatchError, match="klom: expected the same samples"):
        klom(phi(0, samples=2), phi(0, samples=3))
