"""Which sample each row of a tensor belongs to, derived from two backward passes over one graph.

A backward pass is linear. When the loss of sample n is multiplied by 2^e(n), so is the gradient of each row that
belongs to sample n alone, exactly. The ratio of the two gradients is then 2^e(n), which names the sample; a row that
several samples share has a ratio that is no such power.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.call_plan import UnprovenError, results

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


_MOVES_ROWS = frozenset(
    {"__getitem__", "__setitem__", "index_select", "take", "take_along_dim", "gather", "masked_select", "index_add"}
    | {"index_add_", "index_copy", "index_copy_", "index_put", "index_put_", "scatter", "scatter_", "scatter_add"}
    | {"scatter_add_", "repeat_interleave", "_pack_padded_sequence"}
)  # with an index that is data, by torch's names
_TO_PYTHON = frozenset({"tolist", "item", "__int__", "__index__", "numpy", "__array__"})


@final
class WeakTensorSet:
    """Tensors by identity, which are not kept alive."""

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._held = {id(t): weakref.ref(t) for t in tensors}

    def __contains__(self, tensor: Tensor) -> bool:
        known = self._held.get(id(tensor))
        return known is not None and known() is tensor

    def update(self, tensors: Iterable[Tensor]) -> None:
        self._held |= {id(t): weakref.ref(t) for t in tensors}

    def discard(self, tensor: Tensor) -> None:
        self._held.pop(id(tensor), None)


@final
class DataRows:
    """Finds the tensors whose rows were chosen or placed by an index that depends on the data.

    Which sample such a row belongs to is another thing in every batch: unpadded tokens, edges, queues of experts.
    """

    def __init__(self) -> None:
        self._found = WeakTensorSet()
        self._read = False

    def __contains__(self, tensor: Tensor) -> bool:
        return self._read or tensor in self._found

    def watch(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        tensors: list[Tensor],
        constant: Callable[[Tensor], bool],
    ) -> bool:
        """Note a call; say whether it moves rows by data."""
        name = getattr(function, "__name__", "")
        if name in _TO_PYTHON:
            dtype = tensors[0].dtype if tensors else torch.bool
            self._read |= not (dtype.is_floating_point or dtype == torch.bool or all(map(constant, tensors)))
        elif name in _MOVES_ROWS and not _keeps_dimension_0(name, args):
            return any(not t.is_floating_point() and not constant(t) for t in tensors[1:])
        return False

    def add(self, value: Any) -> None:
        self._found.update(results(value))


def _keeps_dimension_0(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an index works within the entries of dimension 0."""
    where = args[1] if len(args) > 1 else None
    if name in {"__getitem__", "__setitem__"}:
        first = where[0] if isinstance(where, tuple) and where else None
        return first is Ellipsis or (isinstance(first, slice) and first == slice(None))
    return isinstance(where, int) and where != 0
