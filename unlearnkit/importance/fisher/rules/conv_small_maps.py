"""Convolutions over maps of a few pixels: pairs of positions, tap by tap, and nothing per sample."""

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.conv_offsets import met
from unlearnkit.importance.fisher.rules.conv_regions import Region, meetings
from unlearnkit.importance.fisher.rules.outer_products import add_pairs

_CACHE = 1 << 20  # elements: a per-sample buffer above it falls out of the caches and costs memory traffic instead
_TRAFFIC = {True: 30, False: 4}  # what that traffic costs per tap, in products of one position; measured on one CPU


def pays(regions: list[Region | None], positions: int, elements: int) -> bool:
    """Say whether pairs cost less than one product per sample."""
    counts = [meetings([region]) for region in regions]
    pairs = sum(count * (count + 1) // 2 for count in counts)
    return pairs <= len(regions) * (positions + _TRAFFIC[elements > _CACHE])


def add_tap_pairs(slot: Slot, total: Tensor, g: Tensor, x: Tensor, regions: list[Region | None]) -> None:
    """Add Σ_n (Σ_p g_p x_{p'})² = Σ_n Σ_{p≤q} (2 − [p=q]) (g_p g_q)(x_{p'} x_{q'}) for each kernel offset."""
    for tap, rows, pixels in met(g, x, regions):
        add_pairs(slot, total[tap], rows, pixels)


def as_weight(total: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """Bring totals of shape (K, O, C) into the order of a convolution's weight, (O, C, *kernel)."""
    ordered: Tensor = torch.movedim(total, 0, -1).reshape(*total.shape[1:], *kernel)
    return ordered
