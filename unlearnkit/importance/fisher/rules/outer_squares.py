"""The compiled kernel of linear layers and convolutions: Σ_n (Σ_t g_nt a_ntᵀ)², squared in registers.

What one sample adds never reaches memory, and windows are never copied. See ``outer_squares.cpp`` beside this file.
"""

import ctypes
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.kernel import Into
from unlearnkit.importance.fisher.rules.meetings import Plan
from unlearnkit.utils.compiled import load

_PACKED = 1 << 20  # elements of the gradient laid out anew at a time


@final
class OuterSquares:
    """The library, loaded."""

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
        """Add Σ_n (Σ_t g_nt a_ntᵀ)², and what else is wanted."""
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
