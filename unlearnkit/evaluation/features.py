"""What an attacker looks at: one number per sample, from that sample's own outputs alone."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, log_softmax, logsumexp, softmax, xlogy
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, class_labels, floats, probabilities


def softmax_of(logits: ArrayLike | Tensor) -> Floats:
    """Return class probabilities: softmax(z)_c = exp z_c / Σ_k exp z_k, in float64."""
    found: Floats = softmax(floats(logits, what="logits", dimensions=2), axis=1)
    return found


def entropies(p: ArrayLike | Tensor) -> Floats:
    """Return H(p) = −Σ_c p_c · ln p_c of each sample.

    Example:
        >>> entropies([[1.0, 0.0], [0.5, 0.5]])
        array([0.        , 0.69314718])
    """
    found: Floats = entr(probabilities(p, what="p")).sum(axis=1)
    return found


def modified_entropies(p: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """Return −(1 − p_y)·ln p_y − Σ_{c≠y} p_c·ln(1 − p_c) of each sample, y its own label.

    Source: Song and Mittal 2021 (Systematic Evaluation of Privacy Risks of Machine Learning Models), "Mentr".

    Example:
        >>> modified_entropies([[0.5, 0.5], [1.0, 0.0]], [0, 0])  # ½·ln 2 twice; 0
        array([0.69314718, 0.        ])
    """
    p = probabilities(p, what="p")
    y = class_labels(labels, samples=len(p), classes=p.shape[1])
    own = np.arange(p.shape[1]) == y[:, None]  # exactly one per row
    tiny = np.finfo(np.float64).tiny
    right, wrong = xlogy(1 - p, np.maximum(p, tiny)), xlogy(p, np.maximum(1 - p, tiny))
    found: Floats = -np.where(own, right, wrong).sum(axis=1)
    return found + 0.0  # no minus zero


def label_losses(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """Return the cross-entropy −ln softmax(z)_y of each sample.

    Example:
        >>> label_losses([[0.0, 0.0]], [1])
        array([0.69314718])
    """
    z = floats(logits, what="logits", dimensions=2)
    y = class_labels(labels, samples=len(z), classes=z.shape[1])
    found: Floats = -log_softmax(z, axis=1)[np.arange(len(z)), y]
    return found + 0.0


def margins(logits: ArrayLike | Tensor, labels: ArrayLike | Tensor) -> Floats:
    """Return the logit-scaled confidence φ = ln(p_y/(1 − p_y)) = z_y − ln Σ_{c≠y} exp z_c of each sample.

    Computed from logits, so that a confidence that rounds to 1 still has a finite φ. Over many models φ is close to
    normal, which the confidence is not, and correctness (0 or 1) even less.

    Source: Carlini, Chien, Nasr, Song, Terzis and Tramèr 2022 (Membership Inference Attacks From First Principles),
    section IV-C.

    Example:
        >>> margins([[2.0, 0.0], [1000.0, 0.0]], [0, 0])
        array([   2., 1000.])
    """
    z = floats(logits, what="logits", dimensions=2)
    y = class_labels(labels, samples=len(z), classes=z.shape[1])
    rows = np.arange(len(z))
    others = z.copy()
    others[rows, y] = -np.inf
    found: Floats = z[rows, y] - logsumexp(others, axis=1)
    return found
