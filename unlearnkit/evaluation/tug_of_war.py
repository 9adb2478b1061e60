"""Tug-of-War: one number for how near an unlearned model's accuracies are to a retrained model's."""

from collections.abc import Mapping

import numpy as np

from unlearnkit.evaluation.arrays import floats
from unlearnkit.utils.errors import MismatchError


def tug_of_war(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Return ToW = Π_s (1 − |a_u(s) − a_r(s)|) over the splits s; a is accuracy.

    The paper takes three splits: forget and retain set of the training data, and test data. Any others can be given;
    the number depends on which, so say which.

    Source: Zhao, Kurmanji, Bărbulescu, Triantafillou and Triantafillou 2024 (What makes unlearning hard and what to do
    about it), the metric "ToW".

    Args:
        unlearned: Split to accuracy of the unlearned model, 0 … 1.
        retrained: The same splits, of the retrained model (or the mean of several).

    Returns:
        0 … 1; 1 only where every accuracy is the retrained model's.

    Raises:
        MismatchError: The splits differ, there is none, or an accuracy is no fraction.

    Example:
        >>> tug_of_war({"forget": 0.1, "retain": 0.9}, {"forget": 0.0, "retain": 1.0})  # 0.9 · 0.9
        0.81
    """
    if not unlearned or unlearned.keys() != retrained.keys():
        raise MismatchError(f"tug_of_war: expected the same splits twice, saw {[*unlearned]} and {[*retrained]}")
    both = floats([[*unlearned.values()], [retrained[name] for name in unlearned]], what="accuracies", dimensions=2)
    if both.min() < 0 or both.max() > 1:
        raise MismatchError(f"tug_of_war: expected accuracies from 0 to 1, saw {both.min():g} to {both.max():g}")
    return float(np.prod(1 - np.abs(both[0] - both[1])))
