"""Torch's own weight gradient of a convolution, made to keep the samples apart: each becomes a group of channels.

∂ℓ_n/∂W for n = 1 … m is the weight gradient of one convolution with m times the channels in m times the groups, which
the library behind torch does without copying windows. It pays where there are many positions for each weight.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn import grad

from unlearnkit.importance.fisher.engine.kernel import Into
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry

_GRADIENTS: tuple[Callable[..., Any], ...] = (grad.conv1d_weight, grad.conv2d_weight, grad.conv3d_weight)
_TOGETHER = 5 << 20  # bytes of weight gradients formed at a time: more falls out of the caches
_BLOCK = 16  # channels that a processor handles together: of other numbers one sample at a time is faster


def native_pays(positions: int, out: int) -> bool:
    """Say whether torch's own weight gradient costs less than copying windows and multiplying them."""
    return positions * (0.35 / out + 0.006) > 2.0


def native_possible(g: Tensor) -> bool:
    """Say whether torch's own weight gradient is both exact and quick: float32 on a CPU with oneDNN.

    On CUDA it may compute in TF32, which these totals must not.
    """
    here = g.device.type == "cpu" and g.dtype == torch.float32
    return here and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def add_native(slot: Slot, into: Into, g: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Add Σ_n (∂ℓ_n/∂W)², and what else is wanted."""
    several = g.shape[2] % _BLOCK == 0 and x.shape[2] % _BLOCK == 0
    for part in slot.chunks(len(g), slot.numel, bound=_TOGETHER if several else 1):
        for one in weight_gradients(g[part], x[part], geometry):
            into.add_one(one)


def weight_gradients(g: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Form every sample's weight gradient."""
    samples, _, out = g.shape[:3]
    channels = x.shape[2] // geometry.groups
    left, right = _as_groups(x), _as_groups(g)
    before = tuple(first for first, _ in geometry.padding)
    if any(first != last for first, last in geometry.padding):
        left = F.pad(left, geometry.sides)
        before = (0,) * len(before)
    found: Tensor = _GRADIENTS[len(geometry.kernel) - 1](
        left,
        (samples * out, channels, *geometry.kernel),
        right,
        stride=geometry.stride,
        padding=before,
        dilation=geometry.dilation,
        groups=samples * geometry.groups,
    )
    return found.reshape(samples, out * channels * math.prod(geometry.kernel))


def _as_groups(t: Tensor) -> Tensor:
    """Put the channels of all samples side by side: (n, k, C, …) to (k, n·C, …)."""
    return t[0] if len(t) == 1 else t.transpose(0, 1).flatten(1, 2).contiguous()
