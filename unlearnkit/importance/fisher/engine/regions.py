"""Parts of a parameter, each used like a parameter of its own: views, and rows chosen by a constant index."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name


@final
@attrs.frozen(kw_only=True)
class Region:
    """Elements of a parameter, none twice, in the order of a tensor made of them.

    Attributes:
        key: Equal for equal regions of one parameter.
        shape: Of the tensor.
        start: The first element in memory.
        stop: One more than the last.
        put: Writes a tensor into its place in a parameter-shaped one.
    """

    key: str
    shape: tuple[int, ...]
    start: int
    stop: int
    put: Callable[[Tensor, Tensor], object] = attrs.field(eq=False)

    def place(self, part: Tensor, parameter: Tensor) -> Tensor:
        """Return the part among zeros, in the parameter's shape."""
        whole = torch.zeros_like(parameter, dtype=part.dtype, requires_grad=False)
        self.put(whole, part.reshape(self.shape))
        return whole


def region_of(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor, parameter: Tensor
) -> Region | None:
    """Find the elements that a function has chosen from a parameter; None where it did anything else."""
    if result._base is parameter:  # noqa: SLF001 - torch has no public name for it
        if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
            return None  # its memory has gaps, which a total has not
        size, stride = result.shape, result.stride()
        offset, span = int(result.storage_offset()) - int(parameter.storage_offset()), 1
        for step, length in sorted(zip(stride, size, strict=True)):
            if length > 1 and step < span:
                return None  # an element twice
            span += (length - 1) * step
        key = f"{offset} {tuple(size)} {stride}"
        put = lambda whole, part: whole.as_strided(size, stride, offset).copy_(part)  # noqa: E731
        return Region(key=key, shape=tuple(size), start=offset, stop=offset + span, put=put)
    if function in {F.embedding, Tensor.__getitem__} and parameter.is_contiguous():
        index, table = args[:2] if function is F.embedding else (args[1], args[0])
        if table is not parameter or kwargs.get("padding_idx") is not None:
            return None  # rows of something made of it; a row without a gradient
        if isinstance(index, Tensor) and index.dtype == torch.int64 and 0 < index.numel() < parameter.numel():
            rows, width = index.reshape(-1), parameter[0].numel()
            listed = rows.tolist()
            if len(set(listed)) == len(listed) and min(listed) >= 0:
                place = lambda whole, part: whole.index_copy_(0, rows, part.reshape(-1, *whole.shape[1:]))  # noqa: E731
                ends = min(listed) * width, (max(listed) + 1) * width
                return Region(key=f"{listed}", shape=tuple(result.shape), start=ends[0], stop=ends[1], put=place)
    return None


def apart(regions: Iterable[Region | None]) -> bool:
    """Say whether regions of one parameter are equal or disjoint."""
    known = {region for region in regions if region is not None}
    ordered = sorted(known, key=lambda region: region.start)
    return all(a.stop <= b.start for a, b in itertools.pairwise(ordered))
