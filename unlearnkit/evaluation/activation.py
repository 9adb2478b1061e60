"""Activation distance: how far apart the outputs of two models are."""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import probabilities, same_shape


def activation_distance(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> float:
    """Return the mean over samples of ‖p − q‖₂, p and q the softmax outputs of two models.

    Source: Golatkar, Achille, Ravichandran, Polito and Soatto 2021 (Mixed-Privacy Forgetting in Deep Networks), for the
    distance between activations; as an L2 distance of softmax outputs in Chundawat, Tarun, Mandal and Kankanhalli 2023
    (Can Bad Teaching Induce Forgetting?), "activation distance".

    Args:
        p: Shape (n, classes), probabilities.
        q: Likewise, for the same samples.

    Returns:
        0 … √2; 0 only for equal outputs.

    Example:
        >>> activation_distance([[1.0, 0.0], [0.5, 0.5]], [[0.4, 0.6], [0.5, 0.5]])  # mean of 0.6·√2 and 0
        0.4242640687119285
    """
    p, q = probabilities(p, what="p"), probabilities(q, what="q")
    same_shape(p, q, what="activation_distance")
    return float(np.linalg.norm(p - q, axis=1).mean())
