"""How good an attack is: area under the ROC curve, and true positives at few false ones."""

from typing import final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import floats

FEW = 0.01
"""The false-positive rate at which true positives are counted."""


@final
@attrs.frozen(kw_only=True)
class AttackSuccess:
    """How well scores separate members from non-members.

    Attributes:
        auc: Area under the ROC curve, 0 … 1; ½ is guessing, and below ½ is a signal too: members were pushed past
            what was never seen.
        tpr: Largest true-positive rate at a false-positive rate of at most 1 %, 0 … 1; None where there are fewer than
            100 non-members, of whom one would be more than 1 %.
        reason: Why ``tpr`` is None, or "".
    """

    auc: float
    tpr: float | None
    reason: str = ""


def attack_success(members: ArrayLike | Tensor, nonmembers: ArrayLike | Tensor) -> AttackSuccess:
    """Judge an attack by its scores.

    Source: Carlini et al. 2022 (Membership Inference Attacks From First Principles), section III, for the rate at few
    false positives. Computed by scikit-learn.

    Args:
        members: Scores of samples that were trained on (or were forgotten), shape (n,); higher means "member".
        nonmembers: Scores of samples that never were, shape (m,).

    Returns:
        AUC and true-positive rate at 1 % false positives.

    Example:
        >>> attack_success([3.0, 2.0], [1.0, 2.0]).auc  # of four pairs three and a half are right
        0.875
    """
    from sklearn.metrics import roc_auc_score, roc_curve  # noqa: PLC0415 - it takes seconds to import

    m, n = floats(members, what="members", dimensions=1), floats(nonmembers, what="nonmembers", dimensions=1)
    truth, scores = np.repeat([1, 0], [len(m), len(n)]), np.concatenate([m, n])
    auc = float(roc_auc_score(truth, scores))
    if len(n) * FEW < 1:
        why = f"a false-positive rate of 1 % needs at least 100 non-members, saw {len(n)}"
        return AttackSuccess(auc=auc, tpr=None, reason=why)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    return AttackSuccess(auc=auc, tpr=float(tpr[fpr <= FEW].max()))
