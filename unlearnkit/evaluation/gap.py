"""The gap to retraining: two-sided, in units of how much retrained models differ among themselves."""

from collections.abc import Sequence
from typing import final

import attrs
import numpy as np

from unlearnkit.evaluation.arrays import floats

ENOUGH = 3
"""How many retrained models a standard deviation needs at least."""


@final
@attrs.frozen(kw_only=True)
class Gap:
    """How an unlearned model's value lies among those of retrained models.

    Attributes:
        value: Of the unlearned model.
        mean: Of the retrained models; None when there is none.
        sd: Their standard deviation, n − 1 in the denominator; None when there are too few.
        models: How many retrained models.
        delta: value − mean, in the value's own unit. Above 0 and below 0 are both a gap.
        sds: delta/sd: the gap in standard deviations, signed. None where it does not exist; ``reason`` says why.
        reason: Why ``sds`` is None, or "".
    """

    value: float
    mean: float | None = None
    sd: float | None = None
    models: int = 0
    delta: float | None = None
    sds: float | None = None
    reason: str = ""


def gap_to_retrain(value: float, retrained: Sequence[float]) -> Gap:
    """Return (v − mean(r))/sd(r): forget accuracy 0 is no success where retraining keeps 0.72.

    Source: the z-score against the population of retrained models; that "close to retrained" and not "low" is the goal:
    Chundawat et al. 2023; Triantafillou et al. 2024 (Are we making progress in unlearning?).

    Args:
        value: A number measured on the unlearned model, any unit.
        retrained: The same number measured on each retrained model.

    Returns:
        The gap; with fewer than three models, or models that are all the same, without ``sds`` and with a reason.

    Example:
        >>> gap = gap_to_retrain(0.0, [0.70, 0.72, 0.74])
        >>> round(gap.delta, 3), round(gap.sds, 3)
        (-0.72, -36.0)
        >>> gap_to_retrain(0.0, [0.72]).reason
        'a standard deviation needs at least 3 retrained models, saw 1'
    """
    value = float(floats([value], what="value", dimensions=1)[0])
    if not len(retrained):
        return Gap(value=value, reason="no retrained model at hand")
    known = floats(retrained, what="retrained", dimensions=1)
    mean, count = float(known.mean()), len(known)
    delta = value - mean
    if count < ENOUGH:
        why = f"a standard deviation needs at least {ENOUGH} retrained models, saw {count}"
        return Gap(value=value, mean=mean, models=count, delta=delta, reason=why)
    # Not by sd > 0: equal numbers whose mean is rounded have a tiny one.
    sd = float(known.std(ddof=1)) if np.ptp(known) > 0 else 0.0
    if not sd:
        why = f"all {count} retrained models have the same value: the gap has no unit"
        return Gap(value=value, mean=mean, sd=0.0, models=count, delta=delta, reason=why)
    return Gap(value=value, mean=mean, sd=sd, models=count, delta=delta, sds=delta / sd)
