"""Linear layers and matrix products: ∂ℓ_n/∂W = Σ_t g_nt a_ntᵀ, ∂ℓ_n/∂b = Σ_t g_nt."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.kernel import KernelOperands, KernelPlan, SumBuffers
from unlearnkit.importance.fisher.engine.recurrent_cells import recurrent_linear
from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot

_PAIRS_UP_TO = 8
_CACHED = 1 << 20  # bytes of products that stay in a core's cache together with the totals that they are added to
_TOGETHER = 8  # samples in one call: starting the threads for each would cost more than a small product
_SMALL = 1 << 14  # elements below which one batched product beats a loop over samples


class _Product(Rule):
    """A product with a matrix, for any number of rows t per sample (tokens, pixels, none)."""

    free_rows: ClassVar[bool] = True
    fresh: ClassVar[bool] = True

    @abc.abstractmethod
    def factors(self, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return what stands left and right in the outer product: rows of a weight and its columns."""

    @final
    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ_t g_nt a_ntᵀ, shape (n, *weight.shape), or Σ_t g_nt."""
        rows = g.flatten(1, -2)
        if role == "bias":
            return sum_of(rows)
        left, right = self.factors(rows, call.saved[0].flatten(1, -2))
        return torch.bmm(left.transpose(1, 2), right)

    @final
    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        if role == "bias":
            slot.add(self.per_sample(role, g, call))
        else:
            add_outer(slot, *self.factors(g.flatten(1, -2), call.saved[0].flatten(1, -2)))


@final
class LinearRule(_Product):
    """y_nt = W a_nt + b."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.linear, recurrent_linear)
    splits_rows: ClassVar[bool] = True

    def bind(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Tensor) -> Call | None:  # noqa: A002
        if weight.dim() != 2 or input.dim() < 2:
            return None
        return Call(weights={"weight": weight, "bias": bias}, saved=(input,))

    def factors(self, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return g, a

    def apart(self, g: Tensor, call: Call, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Split the outputs of those numbers off; see `Rule.apart`."""
        g, a = g.flatten(1, -2), call.saved[0].flatten(1, -2)
        place = rows.unsqueeze(1).expand(-1, g.shape[1], -1)
        return torch.bmm(g.gather(2, place).transpose(1, 2), a), g.scatter(2, place, 0.0)


@final
class MatmulRule(_Product):
    """y_nt = a_nt M, with M of shape (I, O): ∂ℓ_n/∂M = Σ_t a_nt g_ntᵀ; also ``addmm`` with a bias of shape (O,)."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.matmul,
        torch.mm,
        torch.addmm,
        Tensor.matmul,
        Tensor.mm,
        Tensor.__matmul__,
    )

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        if kwargs or len(args) not in {2, 3}:
            return None
        *bias, a, matrix = args
        if matrix.dim() != 2 or a.dim() < 2 or any(b.dim() != 1 for b in bias):
            return None
        return Call(weights={"weight": matrix, "bias": bias[0] if bias else None}, saved=(a,))

    def factors(self, g: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        return a, g


@final
class GroupedRule(Rule):
    """Rows sorted by expert, each multiplied with the matrix of its expert: Σ_t a_t g_tᵀ over the rows of each."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.grouped_mm, torch._grouped_mm)  # noqa: SLF001 - its old name

    def bind(self, a: Tensor, b: Tensor, *, offs: Tensor | None = None, **rest: Any) -> Call | None:
        if offs is None or a.dim() != 2 or b.dim() != 3 or any(value is not None for value in rest.values()):
            return None
        rows = torch.arange(len(a), dtype=offs.dtype, device=offs.device)
        return Call(weights={"weight": b}, saved=(a, torch.searchsorted(offs, rows, right=True)), options=len(b))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return the products of each expert, shape (n, experts, I, O)."""
        del role
        a, expert = call.saved
        each = ((expert == e).unsqueeze(-1) for e in range(call.options))
        return torch.stack([torch.bmm((a * mine).transpose(1, 2), g) for mine in each], 1)


def add_outer(slot: Slot, g: Tensor, a: Tensor) -> None:
    """Add Σ_n (Σ_t g_nt a_ntᵀ)²; shapes (n, T, O) and (n, T, I)."""
    if not g.numel() or not a.numel():
        return
    if g.shape[1] == 1:
        add_single(slot.into("outer", (g.shape[2], a.shape[2]), lambda total: total), g[:, 0], a[:, 0])
    elif not slot.by_kernel(KernelOperands(layer="linear", g=g, x=a)):
        slot.run(outer_plans(slot, g, a))


def sum_of(rows: Tensor) -> Tensor:
    """Sum over the rows of each sample: (n, T, O) to (n, O), a view where there is one row."""
    return rows[:, 0] if rows.shape[1] == 1 else rows.sum(1)


def outer_plans(slot: Slot, g: Tensor, a: Tensor) -> list[KernelPlan]:
    """List the ways to add outer products of T > 1 rows, the fastest first."""
    rows, out, inner = g.shape[1], g.shape[2], a.shape[2]
    shape = (out, inner)
    plans = [
        KernelPlan(name="outer", shape=shape, run=lambda into: add_products(into, g, a)),
        KernelPlan(name="batched", shape=shape, run=lambda into: _batched(slot, into, g, a)),
    ]
    if g.is_cuda or out * inner <= _SMALL:
        plans.reverse()
    if rows <= _PAIRS_UP_TO:
        pairs = KernelPlan(name="pairs", shape=shape, run=lambda into: add_pairs(slot, into, g, a), squares_only=True)
        plans.insert(0 if rows <= 3 else len(plans), pairs)
    return plans


def add_single(into: SumBuffers, g: Tensor, a: Tensor) -> None:
    """Add samples of one row each: Σ_n (g_n a_nᵀ)² = (g²)ᵀ(a²), one matrix product."""
    into.squares.addmm_(g.square().t(), a.square())
    if into.absolute is not None:
        into.absolute.addmm_(g.abs().t(), a.abs())
    if into.signed is not None:
        into.signed.addmm_(g.t(), a)


def add_products(into: SumBuffers, g: Tensor, a: Tensor) -> None:
    """Multiply the few samples whose products stay in the cache, and add their squares; large matrices go in blocks."""
    out, inner = into.squares.shape
    step = min(out, max(1, _CACHED // (inner * g.element_size())))
    few = max(1, min(_TOGETHER, len(g), _CACHED // (step * inner * g.element_size())))
    for start in range(0, out, step):
        rows = slice(start, start + step)
        block = into[rows]
        buffer = torch.empty((few, *block.squares.shape), dtype=g.dtype, device=g.device)
        for left, right in zip(torch.split(g[:, :, rows].transpose(1, 2), few), torch.split(a, few), strict=True):
            products = buffer[: left.shape[0]]
            torch.bmm(left, right, out=products)
            for one in products.unbind():
                block.add_one(one)


def _batched(slot: Slot, into: SumBuffers, g: Tensor, a: Tensor) -> None:
    for part in slot.chunks(len(g), into.squares.numel()):
        into.add(torch.bmm(g[part].transpose(1, 2), a[part]), overwrite=True)


def add_pairs(slot: Slot, into: SumBuffers, g: Tensor, a: Tensor) -> None:
    """Use (Σ_t g_t a_t)² = Σ_t g_t² a_t² + 2 Σ_{t<s} (g_t g_s)(a_t a_s): one product, nothing per sample."""
    rows = g.shape[1]
    if rows == 1:
        add_single(into, g[:, 0], a[:, 0])
        return
    first, second = torch.triu_indices(rows, rows, device=g.device)
    twice = torch.where(first == second, 1.0, 2.0).to(g.dtype).view(1, -1, 1)
    for part in slot.chunks(len(g), len(first) * (g.shape[2] + a.shape[2])):
        gg = g[part][:, first].mul_(g[part][:, second]).mul_(twice)
        aa = a[part][:, first].mul_(a[part][:, second])
        into.squares.addmm_(gg.flatten(0, 1).t(), aa.flatten(0, 1))
