"""Convolutions kernel offset by kernel offset: only where the window lies on the map, and no copies of windows.

For each offset κ, ∂ℓ_n/∂W_κ = Σ_p g_np x_{n, s·p + d·κ} over the positions p that see a pixel and not padding. Those
are a rectangle of the map, so that one strided copy gathers them for all samples. The product of one sample is as large
as W_κ, which stays in the cache together with its totals.
"""

from collections.abc import Iterator

from torch import Tensor

from unlearnkit.importance.fisher.engine.kernel import Into
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.conv_regions import Region
from unlearnkit.importance.fisher.rules.outer_products import one_by_one


def add_taps(slot: Slot, into: Into, g: Tensor, x: Tensor, regions: list[Region | None]) -> None:
    """Add Σ_n (Σ_p g_p x_{p'})² for each kernel offset."""
    per_sample = 2 * (g[0].numel() + x[0].numel())
    for part in slot.chunks(len(g), per_sample):
        for tap, rows, pixels in met(g[part], x[part], regions):
            one_by_one(into[tap], rows, pixels)


def met(g: Tensor, x: Tensor, regions: list[Region | None]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Gather what meets at each kernel offset."""
    rows, pixels = (t.movedim(2, -1).contiguous() for t in (g, x))
    for tap, region in enumerate(regions):
        if region is not None:
            outputs, inputs = ((slice(None), slice(None), *axes) for axes in region)
            yield tap, rows[outputs].flatten(1, -2), pixels[inputs].flatten(1, -2)
