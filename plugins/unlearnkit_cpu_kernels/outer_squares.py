"""Linear layers and convolutions: Σ_n (Σ_t g_nt a_ntᵀ)², squared in registers.

What one sample adds never reaches memory, and windows are never copied. See ``outer_squares.cpp`` beside this file.
"""

import ctypes
import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance import ConvGeometry, Kernel, KernelOperands, KernelPlan, Layer, SumBuffers
from unlearnkit_cpu_kernels.build import load

_NARROW = 16  # output channels below which most of a tile would be empty
_PACKED = 1 << 20  # elements of the gradient laid out anew at a time
_SECTION = 32  # window elements that are worked on by one thread at a time
_FEW_CHANNELS = 8  # below it a kernel offset alone does not fill a tile
_PLACES = (1 << 31) - 1

Integers = npt.NDArray[np.integer]


@final
@attrs.frozen(kw_only=True, eq=False)
class IndexPlan:
    """Which input elements meet which positions of the gradient; offsets in elements from the sample's first.

    Consecutive elements of a section add to rows of the total that are ``step`` apart.
    """

    sections: Integers
    offsets: Integers
    pairs: Integers
    step: int


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

    Examples:
        >>> pair = ConvGeometry(kernel=(2,), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1)
        >>> convolution_plan(pair, 1, (3,), (3, 1), (2,)).offsets.tolist()
        [0, 1]
    """
    if needs_padding(channels):  # over all kernel offsets of a padded map at once
        taps = _places(geometry.kernel, tuple(d * s for d, s in zip(geometry.dilation, strides[1:], strict=True)))
        offsets = (np.arange(channels)[:, None] * strides[0] + taps.ravel()).ravel()
        places = _places(positions, tuple(m * s for m, s in zip(geometry.stride, strides[1:], strict=True)))
        return _plan([np.stack([np.arange(places.size), places.ravel()], axis=1)], offsets)
    map_places = _places(spatial, strides[1:])
    output = np.arange(math.prod(positions)).reshape(positions)
    pairs = []
    for region in geometry.regions(spatial, positions):
        if region is None:
            pairs.append(np.empty((0, 2), np.int32))
        else:
            pairs.append(np.stack([output[region[0]].ravel(), map_places[region[1]].ravel()], axis=1))
    return _plan(pairs, np.tile(np.arange(channels) * strides[0], len(pairs)))


@functools.lru_cache(maxsize=128)
def linear_plan(rows: int, inner: int, strides: tuple[int, int]) -> IndexPlan:
    """Plan a linear layer with several rows per sample."""
    pairs = np.stack([np.arange(rows), np.arange(rows) * strides[0]], axis=1)
    return _plan([pairs], np.arange(inner) * strides[1])


def _plan(pairs: Sequence[Integers], offsets: Integers) -> IndexPlan:
    """Share the offsets out evenly over lists of index pairs, and cut them into sections."""
    each, starts = len(offsets) // len(pairs), np.cumsum([0, *map(len, pairs)])
    sections = [  # the rows of the total are in the order of the weight: channel, then place in the window
        (
            window * each + start,
            min(_SECTION, each - start),
            starts[window],
            len(pairs[window]),
            start * len(pairs) + window,
        )
        for window, start in itertools.product(range(len(pairs)), range(0, each, _SECTION))
    ]
    return IndexPlan(
        sections=np.array(sections, np.int64).reshape(-1, 5),
        offsets=offsets.astype(np.int32),
        pairs=np.concatenate(pairs).astype(np.int32),
        step=len(pairs),
    )


def _places(shape: tuple[int, ...], strides: tuple[int, ...]) -> Integers:
    """Return where the element of each index lies, of the shape given."""
    axes = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, strides, strict=True)), indexing="ij")
    found: Integers = np.sum(axes, axis=0)
    return found


@final
class LinearSquares(Kernel):
    """Σ_n (Σ_t g_nt a_ntᵀ)² of layers with several rows per sample."""

    name: ClassVar[str] = "cpu-linear"
    layer: ClassVar[Layer] = "linear"

    def plan(self, operands: KernelOperands) -> KernelPlan | None:
        """See `Kernel.plan`: float32, and at least 16 outputs or inputs."""
        g, a = operands.g, operands.x
        swap = g.shape[2] < a.shape[2]
        across, down = (a, g) if swap else (g, a)  # the longer side fills the tiles
        width, inner = across.shape[2], down.shape[2]
        if width < _NARROW or not (_can(g) and _can(a)):
            return None
        index = linear_plan(g.shape[1], inner, (down.stride(1), down.stride(2)))
        return KernelPlan(
            name="rows",
            shape=(inner, _padded(width)),
            run=lambda into: _add(into, across.transpose(1, 2), down, index),
            finish=lambda total: total[:, :width] if swap else total[:, :width].t(),
        )


@final
class ConvolutionSquares(Kernel):
    """Σ_n (Σ_p g_np x_np')² of convolutions with any groups, strides, dilation and padding."""

    name: ClassVar[str] = "cpu-convolution"
    layer: ClassVar[Layer] = "convolution"

    def plan(self, operands: KernelOperands) -> KernelPlan | None:
        """See `Kernel.plan`: float32, and at least 16 output channels in a group."""
        g, x, geometry = operands.g, operands.x, operands.options
        groups, kernel = geometry.groups, geometry.kernel
        out, channels = g.shape[2] // groups, x.shape[2] // groups
        if out < _NARROW or not (_can(g) and _can(x)):
            return None

        def run(into: SumBuffers) -> None:
            gradient, inputs, one = _arranged(g, x, geometry, pad=needs_padding(channels))
            spatial, positions = tuple(inputs.shape[2:]), tuple(gradient.shape[2:])
            index = convolution_plan(one, channels, spatial, tuple(inputs.stride()[1:]), positions)
            flat = gradient.flatten(2)
            for group in range(groups):
                rows, maps = flat.narrow(1, group * out, out), inputs.narrow(1, group * channels, channels)
                _add(into[group], rows, maps, index)

        def finish(total: Tensor) -> Tensor:
            each = [one[:, :out].t().contiguous() for one in total]
            return each[0] if groups == 1 else torch.cat(each)

        return KernelPlan(
            name="windows", shape=(groups, math.prod(kernel) * channels, _padded(out)), run=run, finish=finish
        )


def _can(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 and countable(t)


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    library, pointer, number = load(Path(__file__).with_suffix(".cpp")), ctypes.c_void_p, ctypes.c_int64
    library.width.restype = number
    library.add.argtypes = [
        *(pointer, pointer, pointer, number, number, pointer, pointer, pointer, number, number, number, number),
        *(pointer, number, pointer, pointer, pointer, number),
    ]
    library.add.restype = None
    return library, int(library.width())


def _padded(channels: int) -> int:
    """Return the length of a row of totals for so many output channels."""
    width = _library()[1]
    return -(-channels // width) * width


def _add(into: SumBuffers, g: Tensor, x: Tensor, index: IndexPlan) -> None:
    samples, channels, positions = g.shape
    stride = into.squares.stride(0)
    totals = [None if t is None else t.data_ptr() for t in (into.squares, into.absolute, into.signed)]
    step = max(1, min(samples, _PACKED // (positions * stride)))
    packed = torch.empty(step * positions * stride)
    strides = (ctypes.c_int64 * 3)(*g.stride())
    for start in range(0, samples, step):
        some, inputs = g[start : start + step], x[start : start + step]
        _library()[0].add(
            *(*totals, stride, index.step, some.data_ptr(), strides, inputs.data_ptr(), x.stride(0)),
            *(len(some), channels, positions, index.sections.ctypes.data, len(index.sections)),
            *(index.offsets.ctypes.data, index.pairs.ctypes.data, packed.data_ptr()),
            torch.get_num_threads(),
        )


def _arranged(g: Tensor, x: Tensor, geometry: ConvGeometry, *, pad: bool) -> tuple[Tensor, Tensor, ConvGeometry]:
    """Bring a convolution into the form (n, O, *positions) and (n, C, *spatial) of one group.

    The rows of a sample, where there are several, become an axis that the window does not reach along.
    """
    kernel, stride, padding, dilation = geometry.kernel, geometry.stride, geometry.padding, geometry.dilation
    gradient, inputs = g.transpose(1, 2), x.transpose(1, 2)
    if pad and geometry.padded:
        inputs = F.pad(inputs, geometry.sides)
        padding = ((0, 0),) * len(padding)
    if g.shape[1] == 1:
        gradient, inputs = gradient[:, :, 0], inputs[:, :, 0]
    else:
        kernel, stride, dilation, padding = (1, *kernel), (1, *stride), (1, *dilation), ((0, 0), *padding)
        gradient = gradient.contiguous()
    one = ConvGeometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation, groups=1)
    lengths, steps = gradient.shape[2:], gradient.stride()[2:]
    even = all(step == steps[-1] * math.prod(lengths[i + 1 :]) for i, step in enumerate(steps))
    return gradient if even else gradient.contiguous(), inputs, one
