"""The windows of a convolution's input, and the kernels that square per-sample weight gradients."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.fisher.families.geometry import Geometry
from unlearnkit.fisher.families.small_maps import add_tap_pairs, as_weight, pays, tap_positions
from unlearnkit.fisher.totals import Kernel, Slot

_WINDOW_BYTES = 4 << 20  # windows copied at a time: they should stay in the cache until they are multiplied
_FEW_POSITIONS = 16


def padded(x: Tensor, geometry: Geometry) -> Tensor:
    """Pad an input and put its channels last.

    Args:
        x: Shape (m, C, *spatial).
        geometry: Of the convolution.

    Returns:
        Shape (m, *padded spatial, C), contiguous; ``x``'s own memory when it is channels-last and not padded.
    """
    last = x.movedim(1, -1)
    if any(map(any, geometry.padding)):
        sides = [0, 0, *(p for pair in reversed(geometry.padding) for p in pair)]
        last = F.pad(last, sides)
    return last.contiguous()


def windows(last: Tensor, geometry: Geometry, positions: tuple[int, ...]) -> Tensor:
    """Copy the window of every output position: an im2col by one strided copy.

    Args:
        last: From `padded`.
        geometry: Of the convolution.
        positions: Spatial shape of the output.

    Returns:
        Shape (m, P, K·C): K kernel offsets, channels fastest.
    """
    step, channels = last.stride(), last.shape[-1]
    spatial = step[1:-1]
    shape = (last.shape[0], *positions, *geometry.kernel, channels)
    moves = [s * t for s, t in zip(geometry.stride, spatial, strict=True)]
    taps = [d * t for d, t in zip(geometry.dilation, spatial, strict=True)]
    view = last.as_strided(shape, (step[0], *moves, *taps, 1), last.storage_offset())
    return view.reshape(last.shape[0], math.prod(positions), math.prod(geometry.kernel) * channels)


def weight_gradients(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Form every sample's weight gradient: Σ_p g x over windows.

    Args:
        g: Output gradient, shape (n, k, O, *positions).
        x: Input, shape (n, k, C, *spatial).
        geometry: Of the convolution.

    Returns:
        Shape (n, O, C / groups, *kernel).
    """
    samples, rows, out, *positions = g.shape
    groups, channels = geometry.groups, x.shape[2] // geometry.groups
    taps = math.prod(geometry.kernel)
    u = windows(padded(x.flatten(0, 1), geometry), geometry, tuple(positions))
    u = u.view(samples, rows * math.prod(positions), taps, groups, channels).permute(0, 3, 1, 2, 4)
    left = g.flatten(3).transpose(1, 2).reshape(samples * groups, out // groups, -1)
    product = torch.bmm(left, u.reshape(samples * groups, -1, taps * channels))
    return product.view(samples, out, *geometry.kernel, channels).movedim(-1, 2)


def conv_kernels(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> list[Kernel]:
    """List the kernels for a layer, the best guess first.

    Args:
        slot: The weight's.
        g: As for `weight_gradients`.
        x: As for `weight_gradients`.
        geometry: Of the convolution.

    Returns:
        At least one kernel.
    """
    out, channels, taps = g.shape[2], x.shape[2], math.prod(geometry.kernel)
    positions = math.prod(g.shape[3:]) * g.shape[1]
    if geometry.groups > 1:
        return _grouped_kernels(slot, g, x, geometry)

    def from_transposed(total: Tensor) -> Tensor:
        return total.t().reshape(out, *geometry.kernel, channels).movedim(-1, 1)

    def by_windows(total: Tensor) -> None:
        _by_windows(total, g, x, geometry)

    found = [Kernel(name="windows", shape=(taps * channels, out), run=by_windows, finish=from_transposed)]
    if positions <= _FEW_POSITIONS and g.shape[1] == 1:
        met = tap_positions(geometry, tuple(x.shape[3:]), tuple(g.shape[3:]))
        small = Kernel(
            name="small map",
            shape=(taps, out, channels),
            run=lambda total: add_tap_pairs(slot, total, g, x, met),
            finish=lambda total: as_weight(total, geometry.kernel),
        )
        found.insert(0 if pays(met, positions, taps * out * channels) else 1, small)
    if geometry.plain and g.shape[1] == 1:
        found.insert(0, Kernel(name="pixels", shape=(out, channels), run=lambda total: _by_pixels(total, g, x)))
    return found


def _by_pixels(total: Tensor, g: Tensor, x: Tensor) -> None:
    """Multiply g and x of one sample as they lie in memory: a 1×1 convolution needs no windows."""
    buffer = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    for g_n, x_n in zip(g.flatten(3)[:, 0], x.flatten(3)[:, 0], strict=True):
        torch.mm(g_n, x_n.t(), out=buffer)
        total.addcmul_(buffer, buffer)


def _by_windows(total: Tensor, g: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Copy a few samples' windows, multiply each sample's into one buffer, and square it there."""
    rows, out, *positions = g.shape[1:]
    per_sample = rows * math.prod(positions) * total.shape[0]
    step = max(1, min(len(g), _WINDOW_BYTES // (per_sample * total.element_size())))
    buffer = torch.empty(total.shape, dtype=total.dtype, device=total.device)
    for start in range(0, len(g), step):
        part = slice(start, start + step)
        u = windows(padded(x[part].flatten(0, 1), geometry), geometry, tuple(positions))
        u = u.view(-1, rows * math.prod(positions), total.shape[0])
        last = g[part].flatten(3).movedim(2, -1).reshape(len(u), -1, out)
        for u_n, g_n in zip(u, last, strict=True):
            torch.mm(u_n.t(), g_n, out=buffer)
            total.addcmul_(buffer, buffer)


def _grouped_kernels(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> list[Kernel]:
    out, channels = g.shape[2], x.shape[2] // geometry.groups
    taps = math.prod(geometry.kernel)
    positions = math.prod(g.shape[3:]) * g.shape[1]

    def by_product(total: Tensor) -> None:
        work = taps * (channels * geometry.groups * positions + channels * out)
        for part in slot.chunks(len(g), work):
            gradients = weight_gradients(g[part], x[part], geometry)
            total.add_(gradients.flatten(1).square_().sum(0))

    def by_taps(total: Tensor) -> None:
        for part in slot.chunks(len(g), positions * out * 3):
            _depthwise(total, g[part], x[part], geometry)

    product = Kernel(name="plain", shape=(out * channels * taps,), run=by_product)
    if channels != 1 or out != geometry.groups:
        return [product]
    return [Kernel(name="taps", shape=(taps, out), run=by_taps, finish=lambda total: total.t()), product]


def _depthwise(total: Tensor, g: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Multiply g with the input shifted by each kernel offset: one channel sees one channel."""
    samples, rows, out, *positions = g.shape
    sides = [p for pair in reversed(geometry.padding) for p in pair]
    wide = F.pad(x.flatten(0, 1), sides)
    flat = g.flatten(0, 1)
    for tap, offset in enumerate(
        torch.cartesian_prod(*(torch.arange(k) for k in geometry.kernel)).view(-1, len(geometry.kernel)).tolist()
    ):
        cut = tuple(
            slice(d * o, d * o + s * (p - 1) + 1, s)
            for o, d, s, p in zip(offset, geometry.dilation, geometry.stride, positions, strict=True)
        )
        per = (wide[(slice(None), slice(None), *cut)] * flat).flatten(2).sum(2)
        total[tap].add_(per.view(samples, rows, out).sum(1).square_().sum(0))
