"""Checks of array arguments, and their conversion to float64."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SUM = 1e-2  # sums of softmax outputs rounded to bfloat16 are off by less


def floats(values: ArrayLike | Tensor, *, what: str, dimensions: int) -> Floats:
    """Convert numbers to a finite float64 array, or raise."""
    plain: Any = values.detach().to("cpu").double().numpy() if isinstance(values, Tensor) else values
    array: Floats = np.asarray(plain, dtype=np.float64)
    if array.ndim != dimensions:
        raise MismatchError(f"{what}: expected {dimensions} dimensions, saw shape {array.shape}")
    if not array.size:
        raise ConfigurationError(f"{what}: expected at least one value, saw shape {array.shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{what}: expected finite numbers, saw NaN or infinity")
    return array


def probabilities(values: ArrayLike | Tensor, *, what: str) -> Floats:
    """Check class probabilities: one row per sample, each ≥ 0 and adding up to 1."""
    array = floats(values, what=what, dimensions=2)
    sums = array.sum(axis=1, keepdims=True)
    if (array < 0).any() or (np.abs(sums - 1) > _SUM).any():
        raise MismatchError(
            f"{what}: expected rows of probabilities, each ≥ 0 and adding up to 1, saw values from "
            f"{array.min():.3g} to {array.max():.3g} and sums from {sums.min():.3g} to {sums.max():.3g}: "
            "pass softmax outputs, not logits"
        )
    return np.asarray(array / sums)


def two_predictions(p: ArrayLike | Tensor, q: ArrayLike | Tensor, *, what: str) -> tuple[Floats, Floats]:
    """Check class probabilities of two models for the same samples."""
    one, other = probabilities(p, what="p"), probabilities(q, what="q")
    same_shape(one, other, what=what)
    return one, other


def same_shape(one: Floats, other: Floats, *, what: str) -> None:
    """Refuse two arrays of different shape."""
    if one.shape != other.shape:
        raise MismatchError(f"{what}: expected the same samples and classes twice, saw {one.shape} and {other.shape}")


def class_labels(values: ArrayLike | Tensor, *, samples: int, classes: int) -> Ints:
    """Check labels against logits or probabilities."""
    array = floats(values, what="labels", dimensions=1)
    labels: Ints = array.astype(np.int64)
    if len(labels) != samples or (labels != array).any() or labels.min() < 0 or labels.max() >= classes:
        raise MismatchError(
            f"labels: expected {samples} whole numbers from 0 to {classes - 1}, saw {len(labels)} from "
            f"{array.min():g} to {array.max():g}"
        )
    return labels
