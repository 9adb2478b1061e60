"""Input checks of the functions of arrays."""

import numpy as np
import pytest
import torch

from unlearnkit.evaluation.per_sample import class_labels, floats, probabilities, same_shape
from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError


def test_tensors_arrays_and_lists_become_float64():
    for values in ([0.5, 1], np.array([0.5, 1], dtype=np.float32), torch.tensor([0.5, 1], requires_grad=True)):
        found = floats(values, what="x", dimensions=1)
        assert found.dtype == np.float64
        assert found.tolist() == [0.5, 1.0]
    assert floats(torch.tensor([0.5], dtype=torch.bfloat16), what="x", dimensions=1).tolist() == [0.5]


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ([[1.0]], MismatchError, "x: expected 1 dimensions, saw shape"),
        ([], ConfigurationError, "x: expected at least one value"),
        ([float("nan")], NonFiniteError, "x: expected finite numbers"),
        ([float("inf")], NonFiniteError, "x: expected finite numbers"),
    ],
)
def test_invalid_arrays_are_refused(values, error, said):
    with pytest.raises(error, match=said):
        floats(values, what="x", dimensions=1)


@pytest.mark.parametrize("values", [[[0.5, 0.6]], [[2.0, -1.0]], [[-1.0, 2.0], [0.5, 0.5]]])
def test_logits_are_not_probabilities(values):
    with pytest.raises(MismatchError, match="pass softmax outputs, not logits"):
        probabilities(values, what="p")


def test_rounded_softmax_is_made_exact():
    rough = torch.softmax(torch.randn(64, 10), 1).bfloat16()
    assert np.allclose(probabilities(rough, what="p").sum(1), 1, atol=1e-15)


@pytest.mark.parametrize("labels", [[0], [0, 3], [0, -1], [0, 0.5]])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(MismatchError, match="labels: expected 2 whole numbers from 0 to 2"):
        class_labels(labels, samples=2, classes=3)


def test_shapes_must_be_the_same():
    with pytest.raises(MismatchError, match="the same samples and classes"):
        same_shape(np.ones((2, 3)), np.ones((2, 4)), what="js")
