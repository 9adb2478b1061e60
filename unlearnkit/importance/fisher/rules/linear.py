"""Linear layers and matrix products: ∂ℓ_n/∂W = Σ_t g_nt a_ntᵀ, ∂ℓ_n/∂b = Σ_t g_nt."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.outer_products import add_outer, sum_of


@final
class LinearRule(Rule):
    """y_nt = W a_nt + b, for any number of rows t per sample (tokens, pixels, none).

    One row: Σ_n (∂ℓ_n/∂W)² = (g²)ᵀ(a²), one matrix product; more rows: see `outer_products`.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.linear,)
    free_rows: ClassVar[bool] = True
    fresh: ClassVar[bool] = True

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _linear(*args, **kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ_t g_nt a_ntᵀ, shape (n, O, I), or Σ_t g_nt; see `Rule.per_sample`."""
        rows = _rows(g)
        return sum_of(rows) if role == "bias" else torch.bmm(rows.transpose(1, 2), _rows(call.saved[0]))

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add them up without forming all gradients at once; see `Rule.add_squares`."""
        if role == "bias":
            slot.add(self.per_sample(role, g, call))
        else:
            add_outer(slot, _rows(g), _rows(call.saved[0]))


@final
class MatmulRule(Rule):
    """y_nt = a_nt M, with M of shape (I, O): ∂ℓ_n/∂M = Σ_t a_nt g_ntᵀ; also ``addmm`` with a bias of shape (O,)."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (
        torch.matmul,
        torch.mm,
        torch.addmm,
        Tensor.matmul,
        Tensor.mm,
        Tensor.__matmul__,
    )
    free_rows: ClassVar[bool] = True
    fresh: ClassVar[bool] = True

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        if kwargs or len(args) not in {2, 3}:
            return None
        *bias, a, matrix = args
        if matrix.dim() != 2 or a.dim() < 2 or any(b.dim() != 1 for b in bias):
            return None
        return Call(weights={"weight": matrix, "bias": bias[0] if bias else None}, saved=(a,))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ_t a_nt g_ntᵀ, shape (n, I, O), or Σ_t g_nt; see `Rule.per_sample`."""
        rows = _rows(g)
        return sum_of(rows) if role == "bias" else torch.bmm(_rows(call.saved[0]).transpose(1, 2), rows)

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add them up without forming all gradients at once; see `Rule.add_squares`."""
        if role == "bias":
            slot.add(self.per_sample(role, g, call))
        else:
            add_outer(slot, _rows(call.saved[0]), _rows(g))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:  # noqa: A002 - torch's name
    if weight.dim() != 2 or input.dim() < 2:
        return None
    return Call(weights={"weight": weight, "bias": bias}, saved=(input,))


def _rows(t: Tensor) -> Tensor:
    return t.flatten(1, -2)
