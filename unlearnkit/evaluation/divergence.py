"""How far two predictions are apart: Kullback-Leibler and Jensen-Shannon divergence, one value per sample."""

from math import log

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, probabilities, same_shape

LN2 = log(2.0)
"""The largest Jensen-Shannon divergence, nats."""


def kl_divergence(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> Floats:
    """Return KL(p ‖ q) = Σ_c p_c · ln(p_c/q_c) of each sample.

    Source: Kullback and Leibler 1951 (On Information and Sufficiency), equation 2.4.

    Args:
        p: Shape (n, classes), probabilities.
        q: Likewise, for the same samples.

    Returns:
        Shape (n,), nats, 0 … ∞; 0 only where p = q, ∞ where q is 0 and p is not.

    Example:
        >>> kl_divergence([[1.0, 0.0]], [[0.5, 0.5]])  # ln 2
        array([0.69314718])
    """
    p, q = probabilities(p, what="p"), probabilities(q, what="q")
    same_shape(p, q, what="kl_divergence")
    found: Floats = rel_entr(p, q).sum(axis=1)
    return np.maximum(found, 0.0)  # the terms of equal distributions add up to 0 but for rounding


def jensen_shannon(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> Floats:
    """Return JS(p, q) = ½·KL(p ‖ m) + ½·KL(q ‖ m), m = (p + q)/2, of each sample.

    It is symmetric, finite for disjoint distributions too, and does not change when classes that nobody predicts are
    added: it is a sum over classes, and the average over samples is left to the caller.

    Source: Lin 1991 (Divergence Measures Based on the Shannon Entropy), equation 4.1 with weights ½. The square of
    `scipy.spatial.distance.jensenshannon`.

    Args:
        p: Shape (n, classes), probabilities.
        q: Likewise, for the same samples.

    Returns:
        Shape (n,), nats, 0 … ln 2; 0 only where p = q, ln 2 where they are disjoint.

    Example:
        >>> jensen_shannon([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
        array([0.69314718, 0.        ])
    """
    p, q = probabilities(p, what="p"), probabilities(q, what="q")
    same_shape(p, q, what="jensen_shannon")
    m = (p + q) / 2
    found: Floats = (rel_entr(p, m) + rel_entr(q, m)).sum(axis=1) / 2
    return np.clip(found, 0.0, LN2)
