"""Batch norm: Σ_p g_ncp (x_ncp − μ_c) / √(σ²_c + ε) in one reading of both maps; see ``channel_products.cpp``."""

import ctypes
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from unlearnkit.importance import Kernel, KernelOperands, KernelPlan, Layer
from unlearnkit_cpu_kernels.build import load


@final
class BatchNormProducts(Kernel):
    """The gradients of batch norm's weight, on running statistics."""

    name: ClassVar[str] = "cpu-batch-norm"
    layer: ClassVar[Layer] = "batch_norm"

    def plan(self, operands: KernelOperands) -> KernelPlan | None:
        """See `Kernel.plan`: float32 maps of one layout."""
        g, x = (t.flatten(0, 1) for t in (operands.g, operands.x))
        sums = channel_sums(g, x, *operands.options)
        if sums is None:
            return None
        per_sample = sums.view(*operands.g.shape[:2], -1).sum(1)
        return KernelPlan(name="channels", shape=(g.shape[1],), run=lambda into: into.add(per_sample, overwrite=True))


def channel_sums(g: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor | None:
    """Return Σ_p g (x − μ) / √(σ² + ε) for each sample and channel; None for layouts that it is not for."""
    if g.dim() < 3 or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in (g, x)):
        return None
    g, x = g.flatten(2), x.flatten(2)
    if not (g.stride(2) == x.stride(2) == 1 or g.stride(1) == x.stride(1) == 1):
        return None
    library, pointer, number = load(Path(__file__).with_suffix(".cpp")), ctypes.c_void_p, ctypes.c_int64
    library.add.argtypes = [*(pointer,) * 7, ctypes.c_double, *(number,) * 4]
    library.add.restype = None
    running = [t.to(torch.float32).contiguous() for t in (mean, variance)]
    samples, channels, positions = g.shape
    sums = torch.empty(samples, channels)
    maps = [(t.data_ptr(), (number * 3)(*t.stride())) for t in (g, x)]
    library.add(
        *(sums.data_ptr(), *maps[0], *maps[1], *(t.data_ptr() for t in running), eps),
        *(samples, channels, positions, torch.get_num_threads()),
    )
    return sums
