"""Derives which sample each row of a tensor belongs to, from two backward passes over one graph.

A backward pass is linear. When the loss of sample n is multiplied by 2^e(n), so is the gradient of each row that
belongs to sample n alone, exactly. The ratio of the two gradients is then 2^e(n), which names the sample; a row that
several samples share has a ratio that is no such power.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.call_plan import UnprovenError

_EXPONENTS = {torch.float16: 8}  # of two, that fit beside the gradients; 64 in other dtypes
_ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-2}  # of the exponent: two passes need not round alike; else _COARSE
_COARSE = 0.2
NOBODY = -1  # no gradient, or one whose square is zero
UNKNOWN = -2  # a gradient too small to say


def exponents(dtype: torch.dtype) -> int:
    """Return how many exponents of two can be told apart in one backward pass."""
    return _EXPONENTS.get(dtype, 64)


def coefficients(samples: int, base: int, like: Tensor) -> Iterator[Tensor]:
    """Yield 2^e(n) for each sample n, once for each digit of the number n."""
    number = torch.arange(samples, device=like.device)
    while True:
        yield torch.exp2((number % base).to(torch.float64)).to(like.dtype)
        if samples <= base:
            return
        number, samples = number // base, -(-samples // base)


def row_maxima(gradient: Tensor, *, dims: int) -> Tensor:
    """Return the largest absolute value of each row, a row being an index of the first dimensions."""
    flat = gradient.flatten(dims) if gradient.dim() > dims else gradient.unsqueeze(-1)
    found = torch.maximum(flat.amax(-1), flat.amin(-1).neg()) if flat.numel() else flat.new_zeros(flat.shape[:-1])
    return found.to("cpu", torch.float64)  # no vector_norm: twenty times as slow


def owners_of(plain: Tensor, scaled: Sequence[Tensor], samples: int, dtype: torch.dtype) -> Tensor:
    """Return the number of the sample that each row belongs to, `NOBODY` or `UNKNOWN`.

    Args:
        plain: `row_maxima` of the gradient of the plain losses.
        scaled: The same of each pass with `coefficients`.
        samples: Number of samples.
        dtype: Of the gradients.

    Raises:
        UnprovenError: A row belongs to several samples.
    """
    base = exponents(dtype)
    floor = torch.finfo(dtype).tiny * (1 if dtype == torch.float16 else 2**24)  # below it rounding is not relative
    owners, power = torch.zeros(plain.shape, dtype=torch.long), 1
    known, mixed = plain > floor, torch.zeros(plain.shape, dtype=torch.bool)
    for one in scaled:
        exponent = torch.where(known, (one / plain.clamp(min=floor)).log2(), 0.0)
        digit = exponent.round()
        mixed |= known & ~((exponent - digit).abs() <= _ROUNDING.get(dtype, _COARSE))
        mixed |= ~known & (one > floor * 2.0**base)
        owners += digit.clamp(0, base).nan_to_num(0).long() * power
        power *= base
    if bool((mixed | (known & (owners >= samples))).any()):
        raise UnprovenError("its rows belong to other samples as well")
    return torch.where(known, owners, torch.where((plain > 0) & (dtype == torch.float16), UNKNOWN, NOBODY))
