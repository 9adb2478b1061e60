"""The kernels that square the per-sample weight gradients of a convolution, and which of them to try first."""

import itertools
import math

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.kernel import Into, Kernel
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.compiled import compiled_convolution
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.conv_offsets import add_taps
from unlearnkit.importance.fisher.rules.conv_onednn import add_native, native_pays, native_possible
from unlearnkit.importance.fisher.rules.conv_regions import Region, tap_regions
from unlearnkit.importance.fisher.rules.conv_small_maps import add_tap_pairs, as_weight, pays
from unlearnkit.importance.fisher.rules.conv_unfold import add_windows, products
from unlearnkit.importance.fisher.rules.outer_products import one_by_one

_FEW_POSITIONS = 16
_LARGE = 1 << 16  # elements for one kernel offset from which products offset by offset are as fast as larger ones


def conv_kernels(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> list[Kernel]:
    """List the kernels for a layer, the best guess first."""
    compiled = compiled_convolution(slot, g, x, geometry)
    return _by_torch(slot, g, x, geometry) if compiled is None else [compiled]


def _by_torch(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> list[Kernel]:
    if geometry.groups > 1:
        return _grouped_kernels(slot, g, x, geometry)
    if g.is_cuda:  # a loop over samples would start thousands of small products
        return [_products(slot, g, x, geometry), _windows(g, x, geometry)]
    if geometry.plain and g.shape[1] == 1:
        return [_pixels(g, x), _windows(g, x, geometry)]
    positions, out, channels = math.prod(g.shape[3:]) * g.shape[1], g.shape[2], x.shape[2]
    regions = tap_regions(geometry, tuple(x.shape[3:]), tuple(g.shape[3:]))
    found = [_windows(g, x, geometry)]
    found.insert(0 if out * channels >= _LARGE else 1, _taps(slot, g, x, geometry, regions))
    if native_possible(g):
        found.insert(0 if native_pays(positions, out) else 2, _native(slot, g, x, geometry))
    if positions <= _FEW_POSITIONS:
        first = pays(regions, positions, slot.numel)
        found.insert(0 if first else len(found), _pairs(slot, g, x, geometry, regions))
    return found


def _windows(g: Tensor, x: Tensor, geometry: Geometry) -> Kernel:
    out, channels = g.shape[2], x.shape[2]
    return Kernel(
        name="windows",
        shape=(math.prod(geometry.kernel) * channels, out),
        run=lambda into: add_windows(into, g, x, geometry),
        finish=lambda total: total.t().reshape(out, *geometry.kernel, channels).movedim(-1, 1),
    )


def _taps(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry, regions: list[Region | None]) -> Kernel:
    return Kernel(
        name="taps",
        shape=(len(regions), g.shape[2], x.shape[2]),
        run=lambda into: add_taps(slot, into, g, x, regions),
        finish=lambda total: as_weight(total, geometry.kernel),
    )


def _pairs(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry, regions: list[Region | None]) -> Kernel:
    return Kernel(
        name="pairs",
        shape=(len(regions), g.shape[2], x.shape[2]),
        run=lambda into: add_tap_pairs(slot, into.squares, g, x, regions),
        finish=lambda total: as_weight(total, geometry.kernel),
        squares_only=True,
    )


def _native(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> Kernel:
    return Kernel(name="plain", shape=(slot.numel,), run=lambda into: add_native(slot, into, g, x, geometry))


def _pixels(g: Tensor, x: Tensor) -> Kernel:
    shape = (g.shape[2], x.shape[2])
    return Kernel(name="pixels", shape=shape, run=lambda into: _by_pixels(into, g, x))


def _by_pixels(into: Into, g: Tensor, x: Tensor) -> None:
    """Multiply g and x of one sample as they lie in memory: a 1×1 convolution needs no windows."""
    rows, pixels = (t.flatten(3)[:, 0].transpose(1, 2) for t in (g, x))
    one_by_one(into, rows, pixels)


def _products(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> Kernel:
    """Copy windows, multiply and square a chunk of samples at a time: few operations, each of them large."""
    positions, out, channels = math.prod(g.shape[3:]) * g.shape[1], g.shape[2], x.shape[2] // geometry.groups
    taps = math.prod(geometry.kernel)
    work = taps * x.shape[2] * positions + slot.numel

    def run(into: Into) -> None:
        for part in slot.chunks(len(g), work):
            into.add(products(g[part], x[part], geometry), spoil=True)

    return Kernel(
        name="products",
        shape=(out, taps * channels),
        run=run,
        finish=lambda total: total.view(out, *geometry.kernel, channels).movedim(-1, 1),
    )


def _grouped_kernels(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> list[Kernel]:
    out, channels = g.shape[2], x.shape[2] // geometry.groups
    taps = math.prod(geometry.kernel)
    positions = math.prod(g.shape[3:]) * g.shape[1]

    def by_taps(into: Into) -> None:
        for part in slot.chunks(len(g), positions * out * 3):
            _depthwise(into, g[part], x[part], geometry)

    found = [_products(slot, g, x, geometry)]
    if native_possible(g):
        found.append(_native(slot, g, x, geometry))
    if channels == 1 and out == geometry.groups:
        found.insert(0, Kernel(name="taps", shape=(taps, out), run=by_taps, finish=lambda total: total.t()))
    return found


def _depthwise(into: Into, g: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Multiply g with the input shifted by each kernel offset: one channel sees one channel."""
    samples, rows, out, *positions = g.shape
    wide = F.pad(x.flatten(0, 1), geometry.sides)
    flat = g.flatten(0, 1)
    for tap, offset in enumerate(itertools.product(*map(range, geometry.kernel))):
        cut = tuple(
            slice(d * o, d * o + s * (p - 1) + 1, s)
            for o, d, s, p in zip(offset, geometry.dilation, geometry.stride, positions, strict=True)
        )
        per = (wide[(slice(None), slice(None), *cut)] * flat).flatten(2).sum(2)
        into[tap].add(per.view(samples, rows, out).sum(1), spoil=True)
