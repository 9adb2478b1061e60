"""The gap to retraining, and Tug-of-War."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import zscore

from unlearnkit.evaluation.metrics.retrain_gap import gap_to_retrain, tug_of_war
from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError

SHARE = st.floats(0, 1)


def test_worked_example():
    gap = gap_to_retrain(5.0, [1.0, 2.0, 3.0])  # mean 2, sd 1
    assert (gap.mean, gap.sd, gap.models, gap.delta, gap.sds, gap.reason) == (2.0, 1.0, 3, 3.0, 3.0, "")


def test_gap_is_two_sided():
    known = [0.70, 0.72, 0.74]
    low, high = gap_to_retrain(0.62, known), gap_to_retrain(0.82, known)
    assert low.sds == pytest.approx(-high.sds)
    assert low.sds < 0 < high.sds


def test_it_agrees_with_scipy():
    known = np.random.default_rng(0).normal(size=9)
    expected = zscore(known, ddof=1)
    assert [gap_to_retrain(v, known).sds for v in known] == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("known", "said", "delta"),
    [
        ([], "no retrained model at hand", None),
        ([0.5], "at least 3 retrained models, saw 1", -0.5),
        ([0.5, 0.6], "at least 3 retrained models, saw 2", -0.55),
        ([0.1, 0.1, 0.1], "all 3 retrained models have the same value", -0.1),
    ],
)
def test_too_few_models_give_a_reason_and_no_number(known, said, delta):
    gap = gap_to_retrain(0.0, known)
    assert gap.sds is None
    assert said in gap.reason
    assert gap.delta == pytest.approx(delta)


def test_non_numbers_are_refused():
    with pytest.raises(NonFiniteError):
        gap_to_retrain(0.5, [float("nan")] * 3)


def test_tug_of_war_worked_example():
    mine = {"forget": 0.25, "retain": 0.5, "test": 1.0}
    assert tug_of_war(mine, {"forget": 0.0, "retain": 1.0, "test": 1.0}) == 0.75 * 0.5
    assert tug_of_war(mine, mine) == 1.0
    assert tug_of_war({"forget": 0.0}, {"forget": 0.72}) == pytest.approx(0.28)  # forgetting too much is a gap too


@given(st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=4))
def test_tug_of_war_is_a_share_and_symmetric(pairs):
    one, two = ({str(i): pair[side] for i, pair in enumerate(pairs)} for side in (0, 1))
    found = tug_of_war(one, two)
    assert 0 <= found <= 1
    assert found == tug_of_war(two, one)
    assert found == pytest.approx(np.prod([1 - abs(a - b) for a, b in pairs]))


@pytest.mark.parametrize(
    ("one", "two"), [({}, {}), ({"a": 0.5}, {"b": 0.5}), ({"a": 1.5}, {"a": 0.5}), ({"a": 0.5}, {"a": -0.1})]
)
def test_tug_of_war_refuses(one, two):
    with pytest.raises(MismatchError, match="tug_of_war"):
        tug_of_war(one, two)


def test_an_empty_value_is_refused():
    with pytest.raises((ConfigurationError, MismatchError)):
        gap_to_retrain([], [0.1])
