"""The value of α that selects a share of the weights by F_f > α·F_r."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from unlearnkit.importance.importance import Importance

_AT_A_TIME = 1 << 22  # weights
_BUCKETS, _INFINITE = 1 << 15, 0x7FF0
_LOWEST = 1e-30  # selects every weight with F_f > 0


def ratio_threshold(forget: Importance, reference: Importance, *, fraction: float) -> float:
    """Return the α for which F_f > α·F_r holds for a fraction of all weights, rounded down but at least one weight.

    F_f and F_r are the means of two importances of one model that is not sharded. All weights that tie at the threshold
    are selected: α is a millionth below their F_f/F_r, so that rounding loses none of them. A weight with F_r = 0 < F_f
    is selected at every α and counts among the fraction. For the fraction 0, α is just below the largest F_f/F_r.

    Examples:
        >>> forget = Importance(totals={"w": torch.tensor([8.0, 6.0, 3.0, 0.0])}, count=1)
        >>> reference = Importance(totals={"w": torch.tensor([2.0, 2.0, 2.0, 2.0])}, count=1)
        >>> round(ratio_threshold(forget, reference, fraction=0.5), 4)
        3.0
    """
    scale, weights = reference.terms() / forget.terms(), sum(t.numel() for t in forget.totals.values())
    counts = torch.zeros(_BUCKETS, dtype=torch.int64)
    for ratios in _ratios(forget, reference):
        counts += torch.bincount(_bucket(ratios), minlength=_BUCKETS).cpu()
    above = counts[:_INFINITE].flip(0).cumsum(0)  # finite ratios in this bucket or a higher one
    # 0.29 · 100 is 28.999…96 in floating point: a part in 10⁹ is forgiven before rounding down.
    wanted = max(1, math.floor(fraction * weights * (1 + 1e-9))) - int(counts[_INFINITE])
    if wanted > int(above[-1]) or not int(above[-1]):
        return _LOWEST
    rank = max(1, wanted)
    place = int(torch.searchsorted(above, rank))
    bucket, higher = _INFINITE - 1 - place, int(above[place - 1]) if place else 0
    mine = torch.cat([ratios[_bucket(ratios) == bucket] for ratios in _ratios(forget, reference)])
    found = float(mine.kthvalue(len(mine) - (rank - higher) + 1).values)
    return max(found * scale * (1 - 1e-6 if wanted > 0 else 1 + 1e-6), _LOWEST)


def _ratios(forget: Importance, reference: Importance) -> Iterator[Tensor]:
    """Yield F_f/F_r of some weights at a time, in float64, so that no quotient of float32 overflows; without 0/0."""
    for name, total in forget.totals.items():
        other = reference.totals[name].to(total.device)
        for f, r in zip(*(torch.split(t.flatten(), _AT_A_TIME) for t in (total, other)), strict=True):
            quotient = (f.double() / r).abs_()  # −0 is 0
            yield quotient[~quotient.isnan()]


def _bucket(ratios: Tensor) -> Tensor:
    """Number ratios by their first 16 bits: exponent and 4 bits of the mantissa, which have the order of the ratios."""
    return ratios.view(torch.int64) >> 48
