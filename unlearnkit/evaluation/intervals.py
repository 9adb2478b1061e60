"""How sure a number is: intervals that say what they cover, and so what they leave out."""

from typing import final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import floats
from unlearnkit.utils.errors import ConfigurationError

RESAMPLES = 2000
_NUMBERS = 10_000_000  # drawn at once, to bound memory


@final
@attrs.frozen(kw_only=True)
class Interval:
    """A confidence interval of a mean.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        level: The share of such intervals that hold the true value, 0 … 1.
        covers: What was drawn at random: ``"samples"``, ``"training seeds"``, ``"unlearning seeds"``,
            ``"evaluation seeds"``. An interval over samples says nothing about another training run.
    """

    low: float
    high: float
    level: float
    covers: str


def proportion_interval(right: ArrayLike | Tensor, *, level: float = 0.95, covers: str = "samples") -> Interval:
    """Return Wilson's interval of a share, as of an accuracy.

    Unlike the bootstrap, it does not shrink to nothing where all predictions are right, or none.

    Source: Wilson 1927 (Probable Inference, the Law of Succession, and Statistical Inference); by
    `scipy.stats.binomtest`.

    Args:
        right: 0 or 1 of each sample, shape (n,).
        level: 0 … 1.
        covers: See `Interval`.

    Returns:
        The interval, inside 0 … 1.

    Raises:
        ConfigurationError: A value is neither 0 nor 1, or the level is no share.

    Example:
        >>> found = proportion_interval([1, 1, 1, 1])
        >>> round(found.low, 3), found.high
        (0.51, 1.0)
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - it takes seconds to import

    hits = floats(right, what="right", dimensions=1)
    _check(level)
    if not np.isin(hits, (0.0, 1.0)).all():
        raise ConfigurationError("proportion_interval: expected 0 or 1 for each sample, saw another number")
    found = binomtest(int(hits.sum()), len(hits)).proportion_ci(level, method="wilson")
    return Interval(low=float(found.low), high=float(found.high), level=level, covers=covers)


def mean_interval(
    values: ArrayLike | Tensor, *, level: float = 0.95, covers: str = "samples", seed: int = 0
) -> Interval:
    """Return the percentile bootstrap interval of a mean, from 2,000 resamples.

    Source: Efron 1979 (Bootstrap Methods: Another Look at the Jackknife); by `scipy.stats.bootstrap`. With a handful of
    values, as of three training seeds, it is too narrow: read it as a lower bound of the uncertainty.

    Args:
        values: One number per sample, or per seed; shape (n,), n ≥ 2.
        level: 0 … 1.
        covers: See `Interval`.
        seed: Of the resamples.

    Returns:
        The interval.

    Raises:
        ConfigurationError: There are fewer than two values, or the level is no share.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        Interval(low=1.0, high=1.0, level=0.95, covers='samples')
    """
    from scipy.stats import bootstrap  # noqa: PLC0415 - it takes seconds to import

    numbers = floats(values, what="values", dimensions=1)
    _check(level)
    if len(numbers) < 2:
        raise ConfigurationError(f"mean_interval: expected at least 2 values, saw {len(numbers)}")
    found = bootstrap(
        (numbers,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _NUMBERS // len(numbers)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high), level=level, covers=covers)


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigurationError(f"level: expected a share between 0 and 1, saw {level!r}")
