"""Scikit-learn's digits."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from unlearnkit.data import BySubclass, digits, forget_split
from unlearnkit.utils.errors import ConfigurationError


@pytest.fixture(scope="module")
def bundle():
    return digits()


def test_shape_and_dtype_of_an_item(bundle):
    x, label = bundle.train[0]
    assert x.shape == (1, 8, 8)
    assert x.dtype == torch.float32
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert label.dtype == torch.int64
    assert bundle.num_classes == 10


def test_train_and_test_set_cover_all_digits(bundle):
    assert (len(bundle.train), len(bundle.test)) == (1347, 450)
    raw = load_digits()
    rows = torch.cat([bundle.train.rows, bundle.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))
    for i in (0, 17, 1346):
        row = int(bundle.train.rows[i])
        x, label = bundle.train[i]
        np.testing.assert_array_equal(x[0].double().numpy() * 16, raw.images[row])
        assert int(label) == raw.target[row]


def test_each_digit_has_the_same_share(bundle):
    share = torch.bincount(bundle.test.targets) / torch.bincount(torch.cat([bundle.test.targets, bundle.train.targets]))
    assert float((share - 0.25).abs().max()) < 0.01


def test_result_depends_on_the_seed(bundle):
    assert digits().test.rows.tolist() == bundle.test.rows.tolist()
    assert digits(seed=1).test.rows.tolist() != bundle.test.rows.tolist()


def test_another_fraction():
    assert len(digits(test_fraction=0.1).test) == 180


def test_groups_give_fine_and_coarse_labels():
    grouped = digits(groups={"even": "02468", "odd": ["1", "3", "5", "7", "9"]})
    assert grouped.train.kinds == ("fine", "coarse")
    assert grouped.num_classes == 2
    assert torch.equal(grouped.train.targets, grouped.train.labels["fine"] % 2)
    split = forget_split(grouped, BySubclass(fine="7"))
    assert set(grouped.train.labels["fine"][split.train.forget].tolist()) == {7}


def test_groups_must_hold_each_digit_once():
    with pytest.raises(ConfigurationError) as caught:
        digits(groups={"some": "0123456", "more": "67x"})
    message = str(caught.value)
    assert "8: expected in one group, saw it in none" in message
    assert "6: expected in one group, saw it 2 times" in message
    assert "x: expected one of" in message


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.001, 0.999])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ConfigurationError, match=f"test_fraction: expected between 0 and 1.*saw {fraction}"):
        digits(test_fraction=fraction)
