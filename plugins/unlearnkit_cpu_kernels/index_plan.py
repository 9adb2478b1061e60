"""im2col index plans of linear layers and convolutions, cached per layer."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import final

import attrs
import numpy as np
import numpy.typing as npt
from torch import Tensor

from unlearnkit.importance import ConvGeometry

_SECTION = 32  # window elements that are worked on by one thread at a time
_FEW_CHANNELS = 8  # below it a kernel offset alone does not fill a tile
_PLACES = (1 << 31) - 1

Integers = npt.NDArray[np.integer]


@final
@attrs.frozen(kw_only=True, eq=False)
class IndexPlan:
    """Which input elements meet which positions of the gradient; offsets in elements from the sample's first."""

    sections: Integers
    offsets: Integers
    meetings: Integers


def countable(t: Tensor) -> bool:
    """Say whether the elements of one sample, dimension 0, can be counted in the 32 bits that a plan has for them."""
    reach = sum((n - 1) * s for n, s in zip(t.shape[1:], t.stride()[1:], strict=True) if n)
    return reach < _PLACES


def needs_padding(channels: int) -> bool:
    """Say whether a convolution of so few input channels is planned over all kernel offsets of a padded map at once."""
    return channels < _FEW_CHANNELS


@functools.lru_cache(maxsize=128)
def convolution_plan(
    geometry: ConvGeometry,
    channels: int,
    spatial: tuple[int, ...],
    strides: tuple[int, ...],
    positions: tuple[int, ...],
) -> IndexPlan:
    """Plan a convolution.

    Example:
        >>> pair = ConvGeometry(kernel=(2,), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1)
        >>> convolution_plan(pair, 1, (3,), (3, 1), (2,)).offsets.tolist()
        [0, 1]
    """
    if needs_padding(channels):
        return whole_window_plan(geometry, channels, strides, positions)
    map_places = _places(spatial, strides[1:])
    output = np.arange(math.prod(positions)).reshape(positions)
    met = []
    for region in geometry.regions(spatial, positions):
        if region is None:
            met.append(np.empty((0, 2), np.int32))
        else:
            met.append(np.stack([output[region[0]].ravel(), map_places[region[1]].ravel()], axis=1))
    return _plan(met, np.tile(np.arange(channels) * strides[0], len(met)))


@functools.lru_cache(maxsize=128)
def whole_window_plan(
    geometry: ConvGeometry, channels: int, strides: tuple[int, ...], positions: tuple[int, ...]
) -> IndexPlan:
    """Plan a convolution over all kernel offsets of a padded map at once."""
    taps = _places(geometry.kernel, tuple(d * s for d, s in zip(geometry.dilation, strides[1:], strict=True)))
    offsets = (np.arange(channels)[:, None] * strides[0] + taps.ravel()).ravel()
    places = _places(positions, tuple(m * s for m, s in zip(geometry.stride, strides[1:], strict=True)))
    return _plan([np.stack([np.arange(places.size), places.ravel()], axis=1)], offsets)


@functools.lru_cache(maxsize=128)
def linear_plan(rows: int, inner: int, strides: tuple[int, int]) -> IndexPlan:
    """Plan a linear layer with several rows per sample."""
    met = np.stack([np.arange(rows), np.arange(rows) * strides[0]], axis=1)
    return _plan([met], np.arange(inner) * strides[1])


def _plan(met: Sequence[Integers], offsets: Integers) -> IndexPlan:
    """Share the offsets out evenly over lists of meetings, and cut them into sections."""
    each, starts = len(offsets) // len(met), np.cumsum([0, *map(len, met)])
    sections = [
        (window * each + start, min(_SECTION, each - start), starts[window], len(met[window]))
        for window, start in itertools.product(range(len(met)), range(0, each, _SECTION))
    ]
    return IndexPlan(
        sections=np.array(sections, np.int64).reshape(-1, 4),
        offsets=offsets.astype(np.int32),
        meetings=np.concatenate(met).astype(np.int32),
    )


def _places(shape: tuple[int, ...], strides: tuple[int, ...]) -> Integers:
    """Return where the element of each index lies, of the shape given."""
    axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, strides, strict=True)), indexing="ij")
    found: Integers = np.sum(axes, axis=0)
    return found
