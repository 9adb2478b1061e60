"""How far totals that were estimated with random numbers may be off: bounds on their relative standard deviation."""

import math
from collections.abc import Iterable
from typing import Any

_EXACT = (
    *("diagonal-fisher", "batched-diagonal-fisher", "absolute-gradient", "exact-fisher", "loss-free", "output-norm"),
)
"""The estimators of ours that draw nothing; only for what was written before errors were."""


def is_bound(value: Any) -> bool:
    """Say whether something is a bound on an error.

    Example:
        >>> [is_bound(value) for value in (0.0, 1.5, None, -1.0, float("nan"), True)]
        [True, True, True, False, False, False]
    """
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf)


def of_sum(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Bound the relative error of a sum of totals, however their errors depend on each other.

    The standard deviation of a sum is at most the sum of the standard deviations. It is reached: equal data with equal
    random numbers are off alike. So the relative errors are averaged, weighted by the samples: a bound for weights
    whose totals grow with the number of samples. Where a number of samples is not known, the largest error is taken,
    which bounds any weighted mean.

    Example:
        >>> of_sum([(0.3, 10), (0.1, 30)]), of_sum([(0.3, 10), (None, 30)]), of_sum([(0.3, 0), (0.1, 30)])
        (0.15, None, 0.3)
    """
    errors, samples = [], []
    for error, n in parts:
        if error is None:
            return None
        errors.append(error)
        samples.append(n)
    if not all(samples):
        return max(errors, default=0.0)
    return sum(e * n for e, n in zip(errors, samples, strict=True)) / sum(samples)


def of_rest(whole: float | None, part: float | None) -> float | None:
    """Bound the relative error of a difference of totals."""
    return 0.0 if whole == part == 0 else None


def recorded(error: float | None, estimator: str) -> float | None:
    """Return the relative error that a file records, also when it was written before files did."""
    return 0.0 if error is None and estimator in _EXACT else error


def as_text(error: float | None) -> str:
    """Write a relative error as people do.

    Example:
        >>> as_text(0.25), as_text(0.00123), as_text(None)
        ('up to 25 %', 'up to 0.12 %', 'not known')
    """
    return "not known" if error is None else f"up to {100 * error:.2g} %"
