"""Convolutions over maps of a few pixels: pairs of positions, tap by tap, and nothing per sample."""

import itertools
import math

import torch
from torch import Tensor

from unlearnkit.fisher.families.geometry import Geometry
from unlearnkit.fisher.families.rows import add_pairs
from unlearnkit.fisher.totals import Slot

_CACHE = 1 << 20  # elements: a per-sample buffer above it falls out of the caches and costs memory traffic instead
_TRAFFIC = {True: 30, False: 4}  # what that traffic costs per tap, in products of one position; measured on one CPU

Tap = tuple[list[int], list[int]]


def tap_positions(geometry: Geometry, spatial: tuple[int, ...], positions: tuple[int, ...]) -> list[Tap]:
    """List for every kernel offset which output positions see a pixel through it, and which pixel.

    Near the edge of a padded map most offsets see nothing but padding: on a 2×2 map a 3×3 kernel has 16 meetings of
    offset and pixel, not 36.

    Args:
        geometry: Of the convolution.
        spatial: Shape of the input map.
        positions: Shape of the output map.

    Returns:
        One pair of equally long lists per kernel offset: flat output positions, flat input positions.
    """
    found = []
    for offset in itertools.product(*map(range, geometry.kernel)):
        axes = [
            [(p, s * p + d * o - before) for p in range(count) if 0 <= s * p + d * o - before < size]
            for o, s, d, (before, _), count, size in zip(
                offset, geometry.stride, geometry.dilation, geometry.padding, positions, spatial, strict=True
            )
        ]
        meetings = list(itertools.product(*axes))
        outputs = [_flat([p for p, _ in meeting], positions) for meeting in meetings]
        inputs = [_flat([i for _, i in meeting], spatial) for meeting in meetings]
        found.append((outputs, inputs))
    return found


def pays(taps: list[Tap], positions: int, elements: int) -> bool:
    """Say whether pairs cost less than one product per sample.

    Args:
        taps: From `tap_positions`.
        positions: How many output positions there are.
        elements: Of the weight.

    Returns:
        The better guess.
    """
    pairs = sum(len(outputs) * (len(outputs) + 1) // 2 for outputs, _ in taps)
    return pairs <= len(taps) * (positions + _TRAFFIC[elements > _CACHE])


def add_tap_pairs(slot: Slot, total: Tensor, g: Tensor, x: Tensor, taps: list[Tap]) -> None:
    """Add Σ_n (Σ_p g_p x_{p'})² = Σ_n Σ_{p≤q} (2 − [p=q]) (g_p g_q)(x_{p'} x_{q'}) for each kernel offset.

    Args:
        slot: Bounds the memory.
        total: Shape (K, O, C).
        g: Output gradient, shape (n, 1, O, *positions).
        x: Input, shape (n, 1, C, *spatial).
        taps: From `tap_positions`.
    """
    rows, pixels = g.flatten(3)[:, 0].transpose(1, 2), x.flatten(3)[:, 0].transpose(1, 2)
    for one, (outputs, inputs) in zip(total, taps, strict=True):
        if outputs:
            add_pairs(slot, one, rows[:, outputs], pixels[:, inputs])


def _flat(index: list[int], shape: tuple[int, ...]) -> int:
    return sum(i * math.prod(shape[axis + 1 :]) for axis, i in enumerate(index))


def as_weight(total: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Bring totals of shape (K, O, C) into the order of a convolution's weight, (O, C, *kernel)."""
    ordered: Tensor = torch.movedim(total, 0, -1).reshape(*total.shape[1:], *kernel)
    return ordered
