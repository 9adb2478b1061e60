"""Numbers of samples as arrays: checks, and entropy, loss, margin and divergence from a sample's own outputs."""

from math import log
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, log_softmax, logsumexp, rel_entr, softmax
from torch import Tensor

from unlearnkit.utils.errors import ConfigurationError, MismatchError, NonFiniteError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LN2 = log(2.0)  # the largest Jensen-Shannon divergence, nats
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


def softmax_of(logits: ArrayLike | Tensor) -> Floats:
    """Class probabilities in float64."""
    return np.asarray(softmax(floats(logits, what="logits", dimensions=2), axis=1))


def entropies(p: ArrayLike | Tensor) -> Floats:
    """H(p) = −Σ_c p_c · ln p_c of each sample."""
    return np.asarray(entr(probabilities(p, what="p")).sum(axis=1))


def label_losses(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """Cross-entropy −ln softmax(z)_y of each sample."""
    z, y = _logits_and_labels(logits, labels)
    return np.asarray(0.0 - log_softmax(z, axis=1)[np.arange(len(z)), y])


def margins(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """Logit-scaled confidence φ = ln(p_y/(1 − p_y)) of each sample (Carlini et al. 2022), finite where p_y is 1."""
    z, y = _logits_and_labels(logits, labels)
    rows, others = np.arange(len(z)), z.copy()
    others[rows, y] = -np.inf
    return np.asarray(z[rows, y] - logsumexp(others, axis=1))


def jensen_shannon(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> Floats:
    """Return JS(p, q) = ½·KL(p ‖ m) + ½·KL(q ‖ m), m = (p + q)/2, of each sample.

    Both have shape (n, classes); the result has shape (n,), in nats: 0 where p = q, ln 2 where they are disjoint.

    Source: Lin 1991 (Divergence Measures Based on the Shannon Entropy), equation 4.1 with weights ½; the square of
    `scipy.spatial.distance.jensenshannon`.

    Examples:
        >>> jensen_shannon([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
        array([0.69314718, 0.        ])
    """
    p, q = two_predictions(p, q, what="jensen_shannon")
    m = (p + q) / 2
    return np.asarray(np.clip((rel_entr(p, m) + rel_entr(q, m)).sum(axis=1) / 2, 0.0, LN2))


def _logits_and_labels(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> tuple[Floats, Ints]:
    z = floats(logits, what="logits", dimensions=2)
    return z, class_labels(labels, samples=len(z), classes=z.shape[1])
