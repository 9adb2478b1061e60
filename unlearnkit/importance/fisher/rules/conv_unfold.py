"""The windows of a convolution's input, and weight gradients by multiplying with them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.kernel import Into
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.outer_products import one_by_one

_WINDOW_BYTES = 4 << 20  # windows copied at a time: they should stay in the cache until they are multiplied


def padded(x: Tensor, geometry: Geometry) -> Tensor:
    """Pad an input and put its channels last."""
    last = x.movedim(1, -1)
    if geometry.padded:
        last = F.pad(last, [0, 0, *geometry.sides])
    return last.contiguous()


def windows(last: Tensor, geometry: Geometry, positions: tuple[int, ...], scratch: Tensor | None = None) -> Tensor:
    """Copy the window of every output position: an im2col by one strided copy."""
    step, channels = last.stride(), last.shape[-1]
    spatial = step[1:-1]
    shape = (last.shape[0], *positions, *geometry.kernel, channels)
    moves = [s * t for s, t in zip(geometry.stride, spatial, strict=True)]
    taps = [d * t for d, t in zip(geometry.dilation, spatial, strict=True)]
    view = last.as_strided(shape, (step[0], *moves, *taps, 1), last.storage_offset())
    held = last.new_empty(math.prod(shape)) if scratch is None else scratch[: math.prod(shape)]
    held.view(shape).copy_(view)
    return held.view(last.shape[0], math.prod(positions), math.prod(geometry.kernel) * channels)


def products(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Form every sample's weight gradient as the product leaves it: Σ_p g x over windows."""
    samples, rows, out, *positions = g.shape
    groups, channels = geometry.groups, x.shape[2] // geometry.groups
    taps = math.prod(geometry.kernel)
    u = windows(padded(x.flatten(0, 1), geometry), geometry, tuple(positions))
    u = u.view(samples, rows * math.prod(positions), taps, groups, channels).permute(0, 3, 1, 2, 4)
    left = g.flatten(3).transpose(1, 2).reshape(samples * groups, out // groups, -1)
    return torch.bmm(left, u.reshape(samples * groups, -1, taps * channels)).view(samples, out, taps * channels)


def weight_gradients(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Form every sample's weight gradient in the order of the weight."""
    product, channels = products(g, x, geometry), x.shape[2] // geometry.groups
    return product.view(*product.shape[:2], *geometry.kernel, channels).movedim(-1, 2)


def add_windows(into: Into, g: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Copy a few samples' windows, multiply each sample's into one buffer, and square it there."""
    rows, out, *positions = g.shape[1:]
    total = into.squares
    per_sample = rows * math.prod(positions) * total.shape[0]
    step = max(1, min(len(g), _WINDOW_BYTES // (per_sample * total.element_size())))
    scratch = torch.empty(step * per_sample, dtype=total.dtype, device=total.device)
    for start in range(0, len(g), step):
        part = slice(start, start + step)
        u = windows(padded(x[part].flatten(0, 1), geometry), geometry, tuple(positions), scratch)
        last = g[part].flatten(3).movedim(2, -1).reshape(len(g[part]), -1, out)
        one_by_one(into, u.view(len(last), -1, total.shape[0]), last)
