"""Predictions for forgotten samples: a worked example, and against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from unlearnkit.evaluation.metrics.retrain_gap import destinations
from unlearnkit.utils.errors import MismatchError

RANDOM = np.random.default_rng(0)
MINE, ONE, TWO = (RANDOM.normal(size=(50, 4)) for _ in range(3))


def test_worked_example():
    eye = np.eye(3)
    found = destinations(eye[[0, 0, 1, 2]], [eye[[0, 1, 1, 1]]])
    assert found.counts.tolist() == [2, 1, 1]
    assert found.retrained.tolist() == [[1, 3, 0]]
    assert found.confusion.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    assert found.distance == 0.5  # ½·(|½ − ¼| + |¼ − ¾| + |¼ − 0|)
    assert found.agreement == 0.5


def test_against_scikit_learn():
    found = destinations(MINE, [ONE, TWO])
    expected = sum(confusion_matrix(k.argmax(1), MINE.argmax(1), labels=range(4)) for k in (ONE, TWO))
    assert np.array_equal(found.confusion, expected)
    assert found.agreement == pytest.approx(np.mean([(k.argmax(1) == MINE.argmax(1)).mean() for k in (ONE, TWO)]))
    assert found.counts.sum() == 50
    assert found.retrained.sum(axis=1).tolist() == [50, 50]


def test_total_variation_is_the_largest_difference_of_any_set_of_classes():
    from itertools import chain, combinations

    p, q = (np.bincount(z.argmax(1), minlength=4) / 50 for z in (MINE, ONE))
    sets = chain.from_iterable(combinations(range(4), k) for k in range(5))
    expected = max(abs(p[list(s)].sum() - q[list(s)].sum()) for s in sets)
    assert destinations(MINE, [ONE]).distance == destinations(ONE, [MINE]).distance == pytest.approx(expected)
    assert destinations([[1, 0]], [[[0, 1]]]).distance == 1


def test_a_retrained_model_is_no_distance_from_itself():
    found = destinations(MINE, [MINE])
    assert (found.distance, found.agreement) == (0, 1)


def test_mismatched_inputs_are_refused():
    with pytest.raises(MismatchError, match="at least one retrained model"):
        destinations(MINE, [])
    with pytest.raises(MismatchError, match="the same samples and classes"):
        destinations(MINE, [ONE[:10]])
