"""The compiled kernel of batch norm: Σ_p g_ncp (x_ncp − μ_c) / √(σ²_c + ε) in one reading of both maps."""

import ctypes
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from unlearnkit.utils.compiled import load


@final
class ChannelProducts:
    """The library, loaded; see ``channel_products.cpp`` beside this file."""

    def __init__(self) -> None:
        self._library = load(Path(__file__).with_name("channel_products.cpp"))
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._library.add.argtypes = [*(pointer,) * 7, ctypes.c_double, *(number,) * 4]
        self._library.add.restype = None

    def __call__(self, g: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor | None:
        """Return Σ_p g (x − μ) / √(σ² + ε) for each sample and channel."""
        if g.dim() < 3 or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (g, x)):
            return None
        g, x = g.flatten(2), x.flatten(2)
        if not (g.stride(2) == x.stride(2) == 1 or g.stride(1) == x.stride(1) == 1):
            return None
        running = [t.to(torch.float32).contiguous() for t in (mean, variance)]
        samples, channels, positions = g.shape
        sums = torch.empty(samples, channels)
        maps = [(t.data_ptr(), (ctypes.c_int64 * 3)(*t.stride())) for t in (g, x)]
        self._library.add(
            *(sums.data_ptr(), *maps[0], *maps[1], *(t.data_ptr() for t in running), eps),
            *(samples, channels, positions, torch.get_num_threads()),
        )
        return sums
