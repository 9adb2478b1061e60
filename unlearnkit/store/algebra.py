"""Sums and differences of stored totals, one tensor at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.errors import raise_all

LOST = 0.01
"""A difference whose relative rounding error is likely larger than this has lost its digits to cancellation."""


@final
@attrs.frozen(kw_only=True)
class Cancellation:
    """How many differences of one parameter have lost their digits, because the part was nearly the whole.

    Attributes:
        name: Of the parameter.
        entries: How many of its weights.
        of: How many weights it has.
    """

    name: str
    entries: int
    of: int


def summed(parts: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Add importances name by name, in float64.

    Args:
        parts: Each of the same names and shapes; at least one.
        dtype: Of the sums.

    Yields:
        Name and sum.
    """
    for name, first in parts[0].items():
        total = first.to(torch.float64, copy=True)
        for part in parts[1:]:
            total += part[name]
        yield name, total.to(dtype)


def difference(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], *, terms: int, eps: float, lost: list[Cancellation]
) -> Iterator[tuple[str, Tensor]]:
    """Take a part out of a whole name by name, in float64; differences below 0 by rounding become 0.

    A difference d = w − p of sums of n terms is off by about √n·eps·w, and never by more than n·eps·w. Where the first
    is more than `LOST` of d, its digits are gone: such weights are counted.

    Source: Higham and Mary 2019 (A New Approach to Probabilistic Rounding Error Analysis), theorem 3.1.

    Args:
        whole: Totals.
        part: Totals of some of the same samples.
        terms: How many terms the whole has.
        eps: Rounding error of one addition, in the precision in which the totals were made.
        lost: Receives one entry for each parameter that has such weights.

    Yields:
        Name and difference, float64.

    Raises:
        MismatchError: The part is larger than the whole: it was not a part of it.
    """
    for name, total in whole.items():
        wide = total.to(torch.float64)
        rest = wide - part[name]
        larger = rest < -wide * (eps * max(4, terms))
        raise_all(
            [f"{name}: the part is larger than the whole by {float(-rest.min()):.3g}"] if bool(larger.any()) else [],
            where="taking a part out of a store",
        )
        likely = wide * (eps * max(4, terms) ** 0.5)
        gone = int(torch.count_nonzero((likely > LOST * rest.abs()) & (part[name] > 0)))
        if gone:
            lost.append(Cancellation(name=name, entries=gone, of=total.numel()))
        yield name, rest.clamp_(min=0)
