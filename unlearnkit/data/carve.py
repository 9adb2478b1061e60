"""Carve a validation split from the training data: some of the forget set and some of the retain set."""

from typing import final

import attrs
import numpy as np
from sklearn.model_selection import train_test_split
from torch import Tensor

from unlearnkit.data.partition import Indices, Split
from unlearnkit.utils.errors import ConfigurationError


@final
@attrs.frozen(kw_only=True, eq=False)
class Carved:
    """A training set in four parts: what importances are measured on, and what edits are judged by."""

    forget: Indices
    retain: Indices
    forget_validation: Indices
    retain_validation: Indices

    @property
    def full(self) -> Indices:
        """Return the indices of D without any validation sample, sorted."""
        return np.sort(np.concatenate([self.forget, self.retain]))


def carve(split: Split, labels: Tensor, *, fraction: float, seed: int) -> Carved:
    """Carve the same share out of the forget set and out of the retain set, class by class where that is possible.

    Example:
        >>> import torch
        >>> split = Split(forget=[0, 1], retain=[2, 3, 4, 5], scenario="random")
        >>> carved = carve(split, torch.zeros(6), fraction=0.5, seed=0)
        >>> len(carved.forget_validation), len(carved.retain_validation), len(carved.full)
        (1, 2, 3)
    """
    parts = []
    for name, rows in (("forget", split.forget), ("retain", split.retain)):
        if len(rows) < 2:
            raise ConfigurationError(
                f"the {name} set: expected at least 2 samples, one to measure on and one to judge by, saw {len(rows)}"
            )
        parts += _cut(rows, labels.numpy()[rows], fraction, seed)
    forget, forget_validation, retain, retain_validation = parts
    return Carved(
        forget=forget, retain=retain, forget_validation=forget_validation, retain_validation=retain_validation
    )


def _cut(rows: Indices, labels: Indices, fraction: float, seed: int) -> list[Indices]:
    size = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    counts = np.unique(labels, return_counts=True)[1]
    # scikit-learn refuses to stratify where a class has one sample, or more classes than one side has places.
    possible = counts.min() > 1 and len(counts) <= min(size, len(rows) - size)
    cut = train_test_split(rows, test_size=size, random_state=seed, stratify=labels if possible else None)
    return [np.sort(part) for part in cut]
