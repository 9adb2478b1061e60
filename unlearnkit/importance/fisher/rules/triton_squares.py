"""The same sums in Triton, for CUDA: a tile of (o, j) stays in registers while samples go by, and is squared there.

Windows are looked up and not copied, and nothing of the size of samples × weights exists. It is among the candidates
that ``kernels="timed"`` tries on the real tensors, and is never chosen without.
"""

import functools
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.kernel import Into, Kernel
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.arranged import arranged
from unlearnkit.importance.fisher.rules.conv_geometry import Geometry
from unlearnkit.importance.fisher.rules.meetings import Plan, countable, linear_plan, whole_window_plan
from unlearnkit.models.objective import float32_products

_TILE_O, _TILE_J, _TILE_T = 64, 64, 32
_PROGRAMS = 1024  # several for each multiprocessor of a large device


def triton_convolution(slot: Slot, g: Tensor, x: Tensor, geometry: Geometry) -> Kernel | None:
    """Offer the kernel for a convolution."""
    if geometry.groups > 1 or not _possible(g, x):
        return None

    def run(into: Into) -> None:
        gradient, inputs, one = arranged(g, x, geometry, pad=True)
        plan = whole_window_plan(one, x.shape[2], tuple(inputs.stride()[1:]), tuple(gradient.shape[2:]))
        _add(slot, into.squares, gradient.flatten(2), inputs, plan)

    return Kernel(name="triton", shape=(slot.numel,), run=run, squares_only=True)


def triton_linear(slot: Slot, g: Tensor, a: Tensor) -> Kernel | None:
    """Offer the kernel for Σ_n (Σ_t g_ntᵀ a_nt)²."""
    if not _possible(g, a):
        return None
    plan = linear_plan(a.shape[1], a.shape[2], (a.stride(1), a.stride(2)))

    def run(into: Into) -> None:
        _add(slot, into.squares, g.transpose(1, 2), a, plan)

    return Kernel(name="triton", shape=(slot.numel,), run=run, squares_only=True)


def _possible(g: Tensor, x: Tensor) -> bool:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: on a CPU, slowly, for tests
    if not (g.is_cuda or interpreted) or importlib.util.find_spec("triton") is None:
        return False
    return g.dtype == x.dtype == torch.float32 and g.numel() > 0 and countable(g) and countable(x)


def _add(slot: Slot, total: Tensor, g: Tensor, x: Tensor, plan: Plan) -> None:
    samples, out, positions = g.shape
    inner = len(plan.offsets)
    tiles = -(-out // _TILE_O) * -(-inner // _TILE_J)
    # Each share of the samples has totals of its own, added up at the end: no atomics, the same bits in every run.
    affordable = max(1, slot.totals.memory // (slot.numel * 4))
    per = -(-samples // max(1, min(samples, _PROGRAMS // tiles, affordable)))
    shares = -(-samples // per)
    parts = torch.empty(shares, out, inner, device=g.device)
    offsets, places = _on(plan, g.device)
    _compiled()[-(-out // _TILE_O), -(-inner // _TILE_J), shares](
        parts, g, x, offsets, places, samples, out, inner, per, positions, *g.stride(), x.stride(0),
        TILE_O=_TILE_O, TILE_J=_TILE_J, TILE_T=_TILE_T, PRECISION=_precision(),
    )  # fmt: skip
    total.add_(parts.view(shares, -1).sum(0))


@functools.lru_cache(maxsize=256)
def _on(plan: Plan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Bring the places that a plan of one window lists to a device, once."""
    places = torch.from_numpy(plan.meetings[:, 1].copy())
    return torch.from_numpy(plan.offsets).to(device), places.to(device)


def _precision() -> str:
    """Multiply as torch does: in float32, or in tf32 where its switch says so."""
    return "tf32" if float32_products(torch.device("cuda")).startswith("products tf32") else "ieee"


@functools.cache
def _compiled() -> Any:
    """Define the kernel; triton is imported where it is used."""
    import triton  # noqa: PLC0415
    from triton import language as tl  # noqa: PLC0415

    # Triton reads the annotations: only those it knows.
    def squares(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
        parts, g, x, offsets, places, samples, out, inner, per, positions, g_n, g_o, g_p, x_n,  # noqa: ANN001
        TILE_O: tl.constexpr, TILE_J: tl.constexpr, TILE_T: tl.constexpr, PRECISION: tl.constexpr,  # noqa: N803
    ):  # fmt: skip
        o = tl.program_id(0) * TILE_O + tl.arange(0, TILE_O)
        j = tl.program_id(1) * TILE_J + tl.arange(0, TILE_J)
        share = tl.program_id(2)
        offset = tl.load(offsets + j, mask=j < inner, other=0)
        total = tl.zeros((TILE_O, TILE_J), dtype=tl.float32)
        for i in range(per):
            n = share * per + i
            last = tl.minimum(tl.maximum(samples - n, 0), 1) * positions  # no positions beyond the last sample
            sums = tl.zeros((TILE_O, TILE_J), dtype=tl.float32)
            g_of, x_of = g + tl.cast(n, tl.int64) * g_n, x + tl.cast(n, tl.int64) * x_n
            for start in range(0, positions, TILE_T):
                p = start + tl.arange(0, TILE_T)
                place = tl.load(places + p, mask=p < positions, other=0)
                rows = tl.load(
                    g_of + o[:, None] * g_o + p[None, :] * g_p,
                    mask=(o[:, None] < out) & (p[None, :] < last),
                    other=0.0,
                )
                window = tl.load(
                    x_of + place[:, None] + offset[None, :],
                    mask=(p[:, None] < last) & (j[None, :] < inner),
                    other=0.0,
                )
                sums = tl.dot(rows, window, sums, input_precision=PRECISION)
            total += sums * sums
        to = parts + tl.cast(share, tl.int64) * out * inner + o[:, None] * inner + j[None, :]
        tl.store(to, total, mask=(o[:, None] < out) & (j[None, :] < inner))

    return triton.jit(squares)
