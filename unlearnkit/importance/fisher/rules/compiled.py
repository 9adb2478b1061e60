"""The kernels that are compiled on the user's machine, and the layers that they are for."""

import math
from typing import final

import torch
from torch import Tensor, nn

from unlearnkit.importance.fisher.engine.kernel import Into, Kernel
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.arranged import arranged
from unlearnkit.importance.fisher.rules.channel_products import ChannelProducts
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.meetings import convolution_plan, countable, linear_plan, needs_padding
from unlearnkit.importance.fisher.rules.outer_squares import OuterSquares
from unlearnkit.models.parameters import device_of
from unlearnkit.utils.compiled import go_on_without
from unlearnkit.utils.errors import ConfigurationError

_NARROW = 16  # output channels below which most of a tile would be empty


@final
class CompiledKernels:
    """The libraries, loaded."""

    def __init__(self) -> None:
        self.outer = OuterSquares()
        self.channels = ChannelProducts()


def compiled_kernels(model: nn.Module, *, required: bool) -> CompiledKernels | None:
    """Load the kernels for a model, if that has any use for them."""
    if device_of(model).type != "cpu":
        return None
    try:
        return CompiledKernels()
    except ConfigurationError as error:
        if required:
            raise
        go_on_without("going on with slower kernels", error)
        return None


def compiled_convolution(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> Kernel | None:
    """Offer the kernel for a convolution."""
    outer, groups = _outer(slot), geometry.groups
    out, channels = g.shape[2] // groups, x.shape[2] // groups
    if outer is None or out < _NARROW or not (_can(g) and _can(x)):
        return None
    kernel = geometry.kernel
    shape = (groups, math.prod(kernel) * channels, outer.padded(out))

    def run(into: Into) -> None:
        gradient, inputs, one = arranged(g, x, geometry, pad=needs_padding(channels))
        spatial, positions = tuple(inputs.shape[2:]), tuple(gradient.shape[2:])
        plan = convolution_plan(one, channels, spatial, tuple(inputs.stride()[1:]), positions)
        flat = gradient.flatten(2)
        for group in range(groups):
            rows, maps = flat.narrow(1, group * out, out), inputs.narrow(1, group * channels, channels)
            outer.add(into[group], rows, maps, plan)

    def finish(total: Tensor) -> Tensor:
        whole = total[:, :, :out].transpose(1, 2).reshape(groups * out, -1)
        if needs_padding(channels):
            return whole
        return whole.view(groups * out, *kernel, channels).movedim(-1, 1)

    return Kernel(name="compiled", shape=shape, run=run, finish=finish)


def compiled_linear(slot: Slot, g: Tensor, a: Tensor) -> Kernel | None:
    """Offer the kernel for Σ_n (Σ_t g_ntᵀ a_nt)²."""
    outer, swap = _outer(slot), g.shape[2] < a.shape[2]
    across, down = (a, g) if swap else (g, a)  # the longer side fills the tiles
    width, inner = across.shape[2], down.shape[2]
    if outer is None or width < _NARROW or not (_can(g) and _can(a)):
        return None
    plan = linear_plan(g.shape[1], inner, (down.stride(1), down.stride(2)))

    def run(into: Into) -> None:
        outer.add(into, across.transpose(1, 2), down, plan)

    def finish(total: Tensor) -> Tensor:
        return total[:, :width] if swap else total[:, :width].t()

    return Kernel(name="compiled", shape=(inner, outer.padded(width)), run=run, finish=finish)


def _outer(slot: Slot) -> OuterSquares | None:
    return None if slot.totals.compiled is None else slot.totals.compiled.outer


def _can(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 and countable(t)
