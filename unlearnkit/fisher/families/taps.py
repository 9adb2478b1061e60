"""Convolutions kernel offset by kernel offset: only where the window lies on the map, and no copies of windows.

For each offset κ, ∂ℓ_n/∂W_κ = Σ_p g_np x_{n, s·p + d·κ} over the positions p that see a pixel and not padding. Those
are a rectangle of the map, so that one strided copy gathers them for all samples. The product of one sample is as large
as W_κ, which stays in the cache together with its totals.
"""

import itertools
import math
from collections.abc import Iterator

from torch import Tensor

from unlearnkit.fisher.families.geometry import Geometry
from unlearnkit.fisher.families.rows import one_by_one
from unlearnkit.fisher.totals import Slot

Region = tuple[tuple[slice, ...], tuple[slice, ...]]


def tap_regions(geometry: Geometry, spatial: tuple[int, ...], positions: tuple[int, ...]) -> list[Region | None]:
    """Find for every kernel offset which output positions see a pixel through it, and which pixels.

    Args:
        geometry: Of the convolution.
        spatial: Shape of the input map.
        positions: Shape of the output map.

    Returns:
        For each offset two tuples with a slice per axis, of output and of input; None where there is only padding.

    Example:
        >>> three = Geometry(kernel=(3,), stride=(1,), padding=((1, 1),), dilation=(1,), groups=1)
        >>> tap_regions(three, (4,), (4,))[0]
        ((slice(1, 4, None),), (slice(0, 3, 1),))
    """
    per_axis = [
        [_meeting(offset * dilation - before, stride, count, size) for offset in range(length)]
        for length, stride, dilation, (before, _), count, size in zip(
            geometry.kernel, geometry.stride, geometry.dilation, geometry.padding, positions, spatial, strict=True
        )
    ]
    found: list[Region | None] = []
    for chosen in itertools.product(*per_axis):
        known = [pair for pair in chosen if pair is not None]
        whole = len(known) == len(chosen)
        found.append((tuple(o for o, _ in known), tuple(i for _, i in known)) if whole else None)
    return found


def meetings(regions: list[Region | None]) -> int:
    """Count the pairs of output position and pixel over all kernel offsets."""
    return sum(math.prod(axis.stop - axis.start for axis in outputs) for outputs, _ in filter(None, regions))


def add_taps(slot: Slot, total: Tensor, g: Tensor, x: Tensor, regions: list[Region | None]) -> None:
    """Add Σ_n (Σ_p g_p x_{p'})² for each kernel offset.

    Args:
        slot: Bounds the memory.
        total: Shape (K, O, C).
        g: Output gradient, shape (n, k, O, *positions).
        x: Input, shape (n, k, C, *spatial).
        regions: From `tap_regions`.
    """
    per_sample = 2 * (g[0].numel() + x[0].numel())
    for part in slot.chunks(len(g), per_sample):
        for one, rows, pixels in met(g[part], x[part], total, regions):
            one_by_one(one, rows, pixels)


def met(g: Tensor, x: Tensor, total: Tensor, regions: list[Region | None]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Gather what meets at each kernel offset.

    Args:
        g: Output gradient, shape (n, k, O, *positions).
        x: Input, shape (n, k, C, *spatial).
        total: Shape (K, …).
        regions: From `tap_regions`.

    Yields:
        The offset's part of the total, its rows of g, shape (n, T, O), and its pixels, shape (n, T, C).
    """
    rows, pixels = (t.movedim(2, -1).contiguous() for t in (g, x))
    for one, region in zip(total, regions, strict=True):
        if region is not None:
            outputs, inputs = ((slice(None), slice(None), *axes) for axes in region)
            yield one, rows[outputs].flatten(1, -2), pixels[inputs].flatten(1, -2)


def _meeting(shift: int, stride: int, count: int, size: int) -> tuple[slice, slice] | None:
    """Return the p with 0 ≤ stride·p + shift < size, and those pixels."""
    first = max(0, -(shift // stride))
    last = min(count - 1, (size - 1 - shift) // stride)
    if first > last:
        return None
    return slice(first, last + 1), slice(stride * first + shift, stride * last + shift + 1, stride)
