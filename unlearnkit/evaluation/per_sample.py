"""One number for each sample, from its own outputs alone: entropy, loss, margin, and divergence of two predictions."""

from math import log

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, log_softmax, logsumexp, rel_entr, softmax, xlogy
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, Ints, class_labels, floats, probabilities, two_predictions

LN2 = log(2.0)  # the largest Jensen-Shannon divergence, nats


def softmax_of(logits: ArrayLike | Tensor) -> Floats:
    """Class probabilities in float64."""
    return np.asarray(softmax(floats(logits, what="logits", dimensions=2), axis=1))


def entropies(p: ArrayLike | Tensor) -> Floats:
    """H(p) = −Σ_c p_c · ln p_c of each sample."""
    return np.asarray(entr(probabilities(p, what="p")).sum(axis=1))


def modified_entropies(p: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """−(1 − p_y)·ln p_y − Σ_{c≠y} p_c·ln(1 − p_c) of each sample, y its own label (Song and Mittal 2021, "Mentr")."""
    p = probabilities(p, what="p")
    y = class_labels(labels, samples=len(p), classes=p.shape[1])
    own = np.arange(p.shape[1]) == y[:, None]  # exactly one per row
    tiny = np.finfo(np.float64).tiny
    right, wrong = xlogy(1 - p, np.maximum(p, tiny)), xlogy(p, np.maximum(1 - p, tiny))
    return np.asarray(0.0 - np.where(own, right, wrong).sum(axis=1))  # 0 − x is never minus zero


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

    Example:
        >>> jensen_shannon([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]])
        array([0.69314718, 0.        ])
    """
    p, q = two_predictions(p, q, what="jensen_shannon")
    m = (p + q) / 2
    return np.asarray(np.clip((rel_entr(p, m) + rel_entr(q, m)).sum(axis=1) / 2, 0.0, LN2))


def _logits_and_labels(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> tuple[Floats, Ints]:
    z = floats(logits, what="logits", dimensions=2)
    return z, class_labels(labels, samples=len(z), classes=z.shape[1])


def kl_divergence(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> Floats:
    """KL(p ‖ q) = Σ_c p_c · ln(p_c/q_c) of each sample, nats (Kullback and Leibler 1951, equation 2.4)."""
    p, q = two_predictions(p, q, what="kl_divergence")
    return np.asarray(np.maximum(rel_entr(p, q).sum(axis=1), 0.0))  # rounding may make it negative where p = q
