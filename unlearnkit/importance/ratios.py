"""The value of α that selects a share of the weights by F_f > α·F_r."""

import math

import torch

from unlearnkit.importance.importance import Importance

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
    scale, ratios = reference.terms() / forget.terms(), []
    for name, f in forget.totals.items():
        r = reference.totals[name].to(f.device)
        ratios.append((f.double() / r.double()).flatten())  # float64, so that no quotient of float32 overflows
    every = torch.cat(ratios)
    finite = every[torch.isfinite(every)]  # 0/0 is never selected
    # 0.29 · 100 is 28.999…96 in floating point: a part in 10⁹ is forgiven before rounding down.
    wanted = max(1, math.floor(fraction * len(every) * (1 + 1e-9))) - int(torch.isposinf(every).sum())
    if wanted > len(finite) or not len(finite):
        return _LOWEST
    if wanted <= 0:
        return max(float(finite.max()) * scale * (1 + 1e-6), _LOWEST)
    return max(float(finite.kthvalue(len(finite) - wanted + 1).values) * scale * (1 - 1e-6), _LOWEST)
