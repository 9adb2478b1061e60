"""The compiled kernel: Σ_n (Σ_t g_nt a_ntᵀ)² of linear layers and convolutions, squared in registers.

What one sample adds never reaches memory, and windows are never copied. See ``outer_squares.cpp`` beside this file.
"""

import ctypes
import math
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from unlearnkit.compiled import go_on_without, load
from unlearnkit.errors import ConfigurationError
from unlearnkit.fisher.families.arranged import arranged
from unlearnkit.fisher.families.geometry import Geometry
from unlearnkit.fisher.families.meetings import Plan, convolution_plan, countable, linear_plan, needs_padding
from unlearnkit.fisher.kernel import Into, Kernel
from unlearnkit.fisher.totals import Slot
from unlearnkit.parameters import device_of

_PACKED = 1 << 20  # elements of the gradient laid out anew at a time
_NARROW = 16  # output channels below which most of a tile would be empty


@final
class OuterSquares:
    """The library, loaded.

    Raises:
        ConfigurationError: It cannot be compiled here; see `unlearnkit.compiled.load`.
    """

    def __init__(self) -> None:
        self._library = load(Path(__file__).with_name("outer_squares.cpp"))
        self._library.width.restype = ctypes.c_int64
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._library.add.argtypes = [
            *(pointer, pointer, pointer, number, pointer, pointer, pointer, number, number, number, number),
            *(pointer, number, pointer, pointer, pointer, number),
        ]
        self._library.add.restype = None
        self._width = int(self._library.width())

    def padded(self, channels: int) -> int:
        """Return the length of a row of totals for so many output channels."""
        return -(-channels // self._width) * self._width

    def add(self, into: Into, g: Tensor, x: Tensor, plan: Plan) -> None:
        """Add Σ_n (Σ_t g_nt a_ntᵀ)², and what else is wanted.

        Args:
            into: Buffers of float32, shape (J, `padded` (O)), contiguous.
            g: float32, shape (n, O, P), of any strides.
            x: float32, n samples, each laid out as the plan says.
            plan: Of the layer.
        """
        samples, channels, positions = g.shape
        stride = into.squares.stride(0)
        totals = [None if t is None else t.data_ptr() for t in (into.squares, into.absolute, into.signed)]
        step = max(1, min(samples, _PACKED // (positions * stride)))
        packed = torch.empty(step * positions * stride)
        strides = (ctypes.c_int64 * 3)(*g.stride())
        for start in range(0, samples, step):
            some, inputs = g[start : start + step], x[start : start + step]
            self._library.add(
                *(*totals, stride, some.data_ptr(), strides, inputs.data_ptr(), x.stride(0)),
                *(len(some), channels, positions, plan.sections.ctypes.data, len(plan.sections)),
                *(plan.offsets.ctypes.data, plan.meetings.ctypes.data, packed.data_ptr()),
                torch.get_num_threads(),
            )


def outer_squares(model: nn.Module, *, required: bool) -> OuterSquares | None:
    """Load the kernel for a model, if that has any use for it.

    Args:
        model: Whose importance is measured.
        required: Whether it is an error that it cannot be compiled here.

    Returns:
        It; None for a model that is not on a CPU, and where it cannot be had: with a warning when a compiler is there.

    Raises:
        ConfigurationError: It is required and cannot be compiled or loaded.
    """
    if device_of(model).type != "cpu":
        return None
    try:
        return OuterSquares()
    except ConfigurationError as error:
        if required:
            raise
        go_on_without("going on with slower kernels", error)
        return None


def compiled_convolution(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> Kernel | None:
    """Offer the kernel for a convolution.

    Args:
        slot: The weight's.
        g: Output gradient, shape (n, k, O, *positions).
        x: Input, shape (n, k, C, *spatial).
        geometry: Of the convolution.

    Returns:
        It, or None where it was not asked for, cannot do this or would not pay.
    """
    outer, groups = slot.totals.compiled, geometry.groups
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
        for group, (rows, maps) in enumerate(
            zip(torch.split(flat, out, 1), torch.split(inputs, channels, 1), strict=True)
        ):
            outer.add(into[group], rows, maps, plan)

    def finish(total: Tensor) -> Tensor:
        whole = total[:, :, :out].transpose(1, 2).reshape(groups * out, -1)
        if needs_padding(channels):
            return whole
        return whole.view(groups * out, *kernel, channels).movedim(-1, 1)

    return Kernel(name="compiled", shape=shape, run=run, finish=finish)


def compiled_linear(slot: Slot, g: Tensor, a: Tensor) -> Kernel | None:
    """Offer the kernel for Σ_n (Σ_t g_ntᵀ a_nt)².

    Args:
        slot: A parameter whose shape flattens to (O, I).
        g: Shape (n, T, O).
        a: Shape (n, T, I).

    Returns:
        It, or None where it was not asked for, cannot do this or would not pay.
    """
    outer, swap = slot.totals.compiled, g.shape[2] < a.shape[2]
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


def _can(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32 and t.numel() > 0 and countable(t)
