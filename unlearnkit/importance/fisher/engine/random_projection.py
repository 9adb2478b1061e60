"""A small picture of a large tensor, by which two sums of squares are compared without holding either."""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

_EXACT = 1 << 14  # elements up to which a picture is the tensor itself
_WIDTH = 64  # elements that become one
_AT_A_TIME = 1 << 18  # elements: what is made on the way is small


def folded(t: Tensor, *, square: bool = False) -> Tensor:
    """Add neighbours up with fixed random weights of either sign, 64 at a time; small tensors stay as they are.

    Pictures add up as their tensors do: that of a sum is the sum of those of its terms. Two tensors that differ in
    one or in all places have different pictures, except by a chance that many neighbourhoods make negligible.

    Example:
        >>> one, two = torch.rand(200, 100), torch.rand(200, 100)
        >>> len(folded(one)), torch.allclose(folded(one) + folded(two), folded(one + two), atol=1e-4)
        (313, True)
    """
    if t.numel() <= _EXACT:
        return t.reshape(-1).square() if square else t.reshape(-1).clone()
    weights = _weights(t.dtype, t.device)
    return torch.cat([_fold(part, weights, square=square) for part in _parts(t)])


def _parts(t: Tensor) -> Iterator[Tensor]:
    """Cut a tensor in its own order, each part but the last in whole neighbourhoods, without a copy of all of it."""
    if t.is_contiguous():
        t = t.view(-1)
    step = max(1, _AT_A_TIME // (t.numel() // len(t)) // _WIDTH) * _WIDTH
    return (t[at : at + step].reshape(-1) for at in range(0, len(t), step))


def _fold(flat: Tensor, weights: Tensor, *, square: bool) -> Tensor:
    whole = len(flat) // _WIDTH * _WIDTH
    body, rest = (part.square() if square else part for part in (flat[:whole], flat[whole:]))
    found = body.view(-1, _WIDTH) @ weights
    return torch.cat([found, (rest @ weights[: len(rest)]).reshape(1)]) if len(rest) else found


@cache
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = 0.5 + torch.rand(_WIDTH, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (_WIDTH,), generator=generator, dtype=torch.float64) * 2 - 1
    return (sizes * signs).to(device, dtype)
