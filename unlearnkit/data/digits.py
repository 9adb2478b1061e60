"""Scikit-learn's 1,797 handwritten digits: real images that every machine has."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from unlearnkit.data.labelled import DataBundle, Groups, LabelledImages, group_labels
from unlearnkit.utils.errors import ConfigurationError

_BRIGHTEST = 16.0  # pixels count the dark points of 4 × 4 blocks
_NAMES = tuple(str(digit) for digit in range(10))


def digits(*, seed: int = 0, test_fraction: float = 0.25, groups: Groups | None = None) -> DataBundle:
    """Load the digits, split by a seed ≥ 0 so that each digit has the same share in both parts.

    Images have shape (1, 8, 8), float32 in 0 … 1. Labels are ``label`` or, with groups (coarse name to digits as text,
    as ``{"even": "02468", …}``), ``fine`` and ``coarse``, the target. A fraction that leaves too few samples, or
    groups that do not hold each digit once, are a `ConfigurationError`.

    Examples:
        >>> image, label = digits().train[0]
        >>> image.shape, image.dtype
        (torch.Size([1, 8, 8]), torch.float32)
    """
    raw = load_digits()
    images = torch.from_numpy((raw.images / _BRIGHTEST).astype(np.float32)).unsqueeze(1)
    lists = None if groups is None else {name: list(members) for name, members in groups.items()}
    labels = group_labels(torch.from_numpy(raw.target.astype(np.int64)), _NAMES, lists)
    everything = LabelledImages(images=images, **labels)
    if not 0 < test_fraction < 1 or min(test_fraction, 1 - test_fraction) * len(everything) < len(_NAMES):
        raise ConfigurationError(
            f"test_fraction: expected between 0 and 1, with {len(_NAMES)} or more samples a side, saw {test_fraction}"
        )
    train, test = train_test_split(
        np.arange(len(everything)), test_size=test_fraction, stratify=raw.target, random_state=seed
    )
    return DataBundle(name="digits", train=everything.subset(np.sort(train)), test=everything.subset(np.sort(test)))
