"""Where the window of a convolution lies on the map, kernel offset by kernel offset."""

import itertools
import math

from unlearnkit.importance.fisher.rules.conv_geometry import Geometry

Region = tuple[tuple[slice, ...], tuple[slice, ...]]


def tap_regions(geometry: Geometry, spatial: tuple[int, ...], positions: tuple[int, ...]) -> list[Region | None]:
    """Find for every kernel offset which output positions see a pixel through it, and which pixels.

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


def _meeting(shift: int, stride: int, count: int, size: int) -> tuple[slice, slice] | None:
    """Return the p with 0 ≤ stride·p + shift < size, and those pixels."""
    first = max(0, -(shift // stride))
    last = min(count - 1, (size - 1 - shift) // stride)
    if first > last:
        return None
    return slice(first, last + 1), slice(stride * first + shift, stride * last + shift + 1, stride)
