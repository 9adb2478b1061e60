"""Kernels for Σ_n (Σ_t g_ntᵀ a_nt)²: the squares of sums of outer products."""

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.kernel import Into, Kernel
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.compiled import compiled_linear

_PAIRS_UP_TO = 8
_CACHED = 1 << 20  # bytes of a buffer that stay in a core's cache together with the totals that it is added to
_SMALL = 1 << 14  # elements below which one batched product beats a loop over samples


def add_outer(slot: Slot, g: Tensor, a: Tensor) -> None:
    """Add the squares of per-sample sums of outer products."""
    rows, out = g.shape[1:]
    inner = a.shape[2]
    if not g.numel() or not a.numel():
        return
    if rows == 1:
        add_single(slot.into("outer", (out, inner), _same), g[:, 0], a[:, 0])
        return
    slot.run(outer_kernels(slot, g, a))


def sum_of(rows: Tensor) -> Tensor:
    """Sum over the rows of each sample: (n, T, O) to (n, O), a view where there is one row."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.sum(1)


def outer_kernels(slot: Slot, g: Tensor, a: Tensor) -> list[Kernel]:
    """List the kernels for T > 1, the best guess first."""
    compiled = compiled_linear(slot, g, a)
    if compiled is not None:
        return [compiled]
    rows, out, inner = g.shape[1], g.shape[2], a.shape[2]
    shape = (out, inner)
    kernels = [
        Kernel(name="outer", shape=shape, run=lambda into: one_by_one(into, g, a)),
        Kernel(name="batched", shape=shape, run=lambda into: batched(slot, into, g, a)),
    ]
    if g.is_cuda or out * inner <= _SMALL:
        kernels.reverse()
    if rows <= _PAIRS_UP_TO:
        pair = Kernel(
            name="pairs", shape=shape, run=lambda into: add_pairs(slot, into.squares, g, a), squares_only=True
        )
        kernels.insert(0 if rows <= 3 else len(kernels), pair)
    return kernels


def add_single(into: Into, g: Tensor, a: Tensor) -> None:
    """Add samples of one row each, shapes (n, O) and (n, I): Σ_n (g_n a_nᵀ)² = (g²)ᵀ(a²), one matrix product."""
    into.squares.addmm_(g.square().t(), a.square())
    if into.absolute is not None:
        into.absolute.addmm_(g.abs().t(), a.abs())
    if into.signed is not None:
        into.signed.addmm_(g.t(), a)


def one_by_one(into: Into, g: Tensor, a: Tensor) -> None:
    """Multiply one sample at a time into one buffer, and square it there; block by block, which stays in the cache."""
    out, inner = into.squares.shape
    step = max(1, _CACHED // (inner * into.squares.element_size()))
    for start in range(0, out, step):
        rows = slice(start, start + step)
        block = into[rows]
        buffer = torch.empty(block.squares.shape, dtype=block.squares.dtype, device=block.squares.device)
        for g_n, a_n in zip(g[:, :, rows].unbind(), a.unbind(), strict=True):
            torch.mm(g_n.t(), a_n, out=buffer)
            block.add_one(buffer)


def batched(slot: Slot, into: Into, g: Tensor, a: Tensor) -> None:
    """Multiply a chunk of samples at a time."""
    for part in slot.chunks(len(g), into.squares.numel()):
        into.add(torch.bmm(g[part].transpose(1, 2), a[part]), spoil=True)


def add_pairs(slot: Slot, total: Tensor, g: Tensor, a: Tensor) -> None:
    """Use (Σ_t g_t a_t)² = Σ_t g_t² a_t² + 2 Σ_{t<s} (g_t g_s)(a_t a_s): one product, nothing per sample."""
    rows = g.shape[1]
    if rows == 1:
        total.addmm_(g[:, 0].square().t(), a[:, 0].square())
        return
    first, second = torch.triu_indices(rows, rows, device=g.device)
    twice = torch.where(first == second, 1.0, 2.0).to(g.dtype).view(1, -1, 1)
    for part in slot.chunks(len(g), len(first) * (g.shape[2] + a.shape[2])):
        gg = g[part][:, first].mul_(g[part][:, second]).mul_(twice)
        aa = a[part][:, first].mul_(a[part][:, second])
        total.addmm_(gg.flatten(0, 1).t(), aa.flatten(0, 1))


def _same(buffer: Tensor) -> Tensor:
    return buffer
