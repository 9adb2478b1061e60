"""Sums and differences of stored totals, one tensor at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import extremes
from unlearnkit.utils.chunks import chunk_size, chunks
from unlearnkit.utils.errors import raise_all

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
    """Add importances name by name, in float64."""
    for name in parts[0]:
        yield name, _sum([part[name] for part in parts]).to(dtype)


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0].to(torch.float64, copy=True)
    for tensor in tensors[1:]:
        total += tensor
    return total


def difference(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], *, terms: int, eps: float, lost: list[Cancellation]
) -> Iterator[tuple[str, Tensor]]:
    """Take a part out of a whole name by name, in float64; differences below 0 by rounding become 0.

    A difference d = w − p of sums of n terms is off by about √n·eps·w, and never by more than n·eps·w. Where the first
    is more than `LOST` of d, its digits are gone: such weights are counted.

    Source: Higham and Mary 2019 (A New Approach to Probabilistic Rounding Error Analysis), theorem 3.1.
    """
    for name in whole:
        yield name, _rest(name, whole[name], part[name], terms=max(4, terms), eps=eps, lost=lost)


def _rest(name: str, whole: Tensor, part: Tensor, *, terms: int, eps: float, lost: list[Cancellation]) -> Tensor:
    """Subtract, in pieces: nothing but the result is of the size of the whole."""
    rest = torch.empty_like(whole, dtype=torch.float64)
    top, gone, below = extremes(whole)[1], 0, 0.0
    for total, taken, left in chunks(whole, part, rest, limit=chunk_size(rest.device)):
        wide = total.to(torch.float64)
        torch.sub(wide, taken, out=left)
        # A gradient is off by eps of the large ones beside it, from whose sums it was made: g² then by 2·g·eps·g_top.
        allowed = (wide + 2 * (wide * top).sqrt() + eps * top).mul_(eps * terms)
        if bool((left < -allowed).any()):
            below = min(below, float(left.min()))
        gone += int(torch.count_nonzero((wide * (eps * terms**0.5) > LOST * left.abs()) & (taken > 0)))
        left.clamp_(min=0)
    problems = [f"{name}: the part is larger than the whole by {-below:.3g}"] if below < 0 else []
    raise_all(problems, where="taking a part out of a store")
    if gone:
        lost.append(Cancellation(name=name, entries=gone, of=whole.numel()))
    return rest
