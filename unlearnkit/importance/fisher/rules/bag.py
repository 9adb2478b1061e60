"""Bags of embeddings: y_n = Σ_t w_nt E[i_nt], so ∂ℓ_n/∂E_v = Σ_{t: i_nt = v} w_nt g_n; the mean has w_nt = 1 / T_n."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.importance.fisher.rules.embedding import EmbeddingRule, refuse_longer

_ROWS = EmbeddingRule()


@final
class EmbeddingBagRule(Rule):
    """Sums and means of bags of one length, one per row of a matrix of indices: an embedding whose rows share a g."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.embedding_bag,)

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`; bags given by offsets, and maxima, are not covered."""
        return _bag(*args, **kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return the whole table for each sample, shape (n, V, D); see `Rule.per_sample`."""
        return _ROWS.per_sample(role, *_spread(g, call))

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add the looked-up rows only; see `Rule.add_squares`."""
        for rows in slot.chunks(len(g), self.work(g, call)):
            _ROWS.add_squares(role, *_spread(g[rows], _cut(call, rows)), slot)

    def work(self, g: Tensor, call: Call) -> int:
        """Count the gradients of the rows, and their copies; see `Rule.work`."""
        return 4 * call.saved[0][0].numel() * g.shape[-1]


def _bag(  # noqa: PLR0917 - torch's own signature
    input: Tensor,  # noqa: A002 - torch's name
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Call | None:
    del sparse, include_last_offset
    if input.dim() != 2 or offsets is not None or scale_grad_by_freq or mode not in {"sum", "mean"}:
        return None
    if max_norm is not None:
        refuse_longer(input, weight, max_norm, norm_type)
    vocabulary = weight.shape[0]
    padding = None if padding_idx is None else padding_idx % vocabulary
    share = torch.ones_like(input, dtype=weight.dtype) if per_sample_weights is None else per_sample_weights.detach()
    if mode == "mean":
        share = share / _lengths(input, padding).to(weight.dtype)
    return Call(weights={"weight": weight}, saved=(input, share), options=(vocabulary, padding))


def _lengths(index: Tensor, padding: int | None) -> Tensor:
    """Count what is not padding in each bag, at least 1: shape (bags, 1)."""
    counted = index >= 0 if padding is None else index != padding
    return counted.sum(1, keepdim=True).clamp(min=1)


def _spread(g: Tensor, call: Call) -> tuple[Tensor, Call]:
    """Give every index of a bag its gradient: what an embedding of the same indices would get."""
    index, share = call.saved
    return g.unsqueeze(-2) * share.unsqueeze(-1), call.holding([index])


def _cut(call: Call, rows: slice) -> Call:
    return call.holding(t[rows] for t in call.saved)
