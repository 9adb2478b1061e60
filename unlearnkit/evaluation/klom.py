"""KLOM: how different the margins of a population of unlearned models and of retrained models are."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.utils.errors import MismatchError

BINS, CLIP, SMOOTHING = 20, 100.0, 1e-5


def klom(retrained: ArrayLike | Tensor, unlearned: ArrayLike | Tensor) -> Floats:
    """Return KL(h(φ_r) ‖ h(φ_u)) of each sample, h a histogram over models of its margins φ.

    Margins are clipped to ±100 and sorted into 20 bins of one width from the smallest to the largest margin of the
    sample under either population; 10⁻⁵ is added to every bin, so that the value is finite (at most about 12). The
    authors use 100 models of each kind; with a handful the number ranks methods under one protocol and says no more.

    Source: Georgiev, Rinberg, Park, Garg, Ilyas, Madry and Neel 2024 (Attribute-to-Delete: Machine Unlearning via
    Datamodel Matching), appendix E.1.

    Args:
        retrained: Margins, shape (models, n); see `unlearnkit.evaluation.features.margins`.
        unlearned: Likewise, for the same samples; any number of models.

    Returns:
        Shape (n,), nats, ≥ 0; 0 where both histograms are equal.

    Raises:
        MismatchError: The samples differ in number.

    Example:
        >>> klom([[0.0, 1.0], [1.0, 2.0]], [[1.0, 5.0], [0.0, 6.0]]).round(1)
        array([ 0. , 10.8])
    """
    r = floats(retrained, what="retrained", dimensions=2).clip(-CLIP, CLIP)
    u = floats(unlearned, what="unlearned", dimensions=2).clip(-CLIP, CLIP)
    if r.shape[1] != u.shape[1]:
        raise MismatchError(f"klom: expected the same samples twice, saw {r.shape[1]} and {u.shape[1]}")
    return np.array([_klom_of_one(r[:, i], u[:, i]) for i in range(r.shape[1])])


def _klom_of_one(retrained: Floats, unlearned: Floats) -> float:
    both = np.concatenate([retrained, unlearned])
    edges = np.histogram_bin_edges(both, bins=BINS)
    p, q = (_smoothed(values, edges) for values in (retrained, unlearned))
    return float(max(rel_entr(p, q).sum(), 0.0))


def _smoothed(values: Floats, edges: Floats) -> Floats:
    shares = np.histogram(values, bins=edges)[0] / len(values) + SMOOTHING
    found: Floats = shares / shares.sum()
    return found
