"""U-LiRA: for each sample an attacker of its own, that knows how unlearned and how retrained models treat it."""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, floats
from unlearnkit.evaluation.membership.success import AttackSuccess, attack_success
from unlearnkit.utils.errors import MismatchError

FLOOR = 1e-3
"""The smallest standard deviation of a fitted normal distribution, logit units."""


def ulira(unlearned: ArrayLike | Tensor, retrained: ArrayLike | Tensor) -> AttackSuccess:
    """Judge Λ = ln N(φ; μ_u, σ_u) − ln N(φ; μ_r, σ_r) on φ of unlearned against φ of retrained models.

    φ is the logit-scaled confidence of a sample under one model (`unlearnkit.evaluation.features.margins`): normal
    distributions fit it, and would not fit correctness, which is 0 or 1. μ and σ belong to one sample; they are fitted
    to all models but the k-th of either kind when the k-th are judged, so that no model is judged by a fit to itself
    and unlearned models that are the retrained ones give exactly ½.

    Source: Hayes, Shumailov, Triantafillou, Khalifa and Papernot 2024 (Inexact Unlearning Needs More Careful
    Evaluations to Avoid a False Sense of Privacy), "U-LiRA"; after Carlini et al. 2022. Leaving out pair k is
    ours: the paper trains further models to judge.

    Args:
        unlearned: φ of n samples under k models that were trained on them and then unlearned them, shape (k, n).
        retrained: φ of the same samples under k models that were never trained on them, shape (k, n). k ≥ 3.

    Returns:
        AUC and true-positive rate over all k·n pairs; "member" means unlearned.

    Raises:
        MismatchError: The shapes differ, or there are fewer than three models of each kind.

    Example:
        >>> phi = np.random.default_rng(0).normal(size=(8, 20))
        >>> ulira(phi, phi).auc, ulira(phi + 5, phi).auc > 0.95
        (0.5, True)
    """
    u, r = floats(unlearned, what="unlearned", dimensions=2), floats(retrained, what="retrained", dimensions=2)
    if u.shape != r.shape or len(u) < 3:
        raise MismatchError(f"ulira: expected two arrays of one shape (at least 3, n), saw {u.shape} and {r.shape}")
    pairs = [_scores(k, u, r) for k in range(len(u))]
    return attack_success(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


def _scores(k: int, unlearned: Floats, retrained: Floats) -> tuple[Floats, Floats]:
    from scipy.stats import norm  # noqa: PLC0415 - it takes seconds to import

    fits = []
    for models in (unlearned, retrained):
        others = np.delete(models, k, axis=0)
        fits.append(norm(others.mean(axis=0), np.maximum(others.std(axis=0, ddof=1), FLOOR)))
    first, second = (fits[0].logpdf(x) - fits[1].logpdf(x) for x in (unlearned[k], retrained[k]))
    return first, second
