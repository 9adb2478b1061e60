"""Embeddings: ∂ℓ_n/∂E_v = Σ_{t: i_nt = v} g_nt, only the rows that a sample looks up.

Bags of them: y_n = Σ_t w_nt E[i_nt], so ∂ℓ_n/∂E_v = Σ_{t: i_nt = v} w_nt g_n; the mean has w_nt = 1 / T_n.
"""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Slot
from unlearnkit.utils.errors import UnsupportedModelError


@final
class EmbeddingRule(Rule):
    """y_nt = E[i_nt]; the row ``padding_idx`` has no gradient. Repeated indices of one sample add before squaring."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.embedding,)
    free_rows: ClassVar[bool] = True

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
        input: Tensor,  # noqa: A002 - torch's name
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Call | None:
        del sparse
        if scale_grad_by_freq:  # counted over the whole batch
            return None
        _refuse_longer(input, weight, max_norm, norm_type)
        return Call(weights={"weight": weight}, saved=(input,), options=(len(weight), _padding(weight, padding_idx)))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return the whole table for each sample, shape (n, V, D); only tied tables need it."""
        del role
        vocabulary, _ = call.options
        keys, rows = _rows(g, call)
        table = torch.zeros(len(g) * vocabulary, g.shape[-1], dtype=g.dtype, device=g.device)
        return table.index_add_(0, keys, rows).view(len(g), vocabulary, g.shape[-1])

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add the looked-up rows only."""
        del role
        slot.add_rows(*_looked_up(g, call))

    def few_rows(self, g: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return the looked-up rows; see `Rule.few_rows`."""
        _, padding = call.options
        index, rows = call.saved[0].flatten(1).to(torch.long), g.flatten(1, -2)
        return index, rows if padding is None else rows * (index != padding).unsqueeze(2)

    def work(self, g: Tensor, call: Call) -> int:
        """Leave room for the rows."""
        del call
        return 3 * g[0].numel()


_ROWS = EmbeddingRule()


@final
class EmbeddingBagRule(Rule):
    """Sums and means of bags of one length, one per row of a matrix of indices: an embedding whose rows share a g."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (F.embedding_bag,)

    def bind(  # noqa: PLR0917 - torch's own signature
        self,
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
        _refuse_longer(input, weight, max_norm, norm_type)
        padding = _padding(weight, padding_idx)
        share = (
            torch.ones_like(input, dtype=weight.dtype) if per_sample_weights is None else per_sample_weights.detach()
        )
        if mode == "mean":
            counted = input >= 0 if padding is None else input != padding
            share = share / counted.sum(1, keepdim=True).clamp(min=1).to(weight.dtype)
        return Call(weights={"weight": weight}, saved=(input, share), options=(len(weight), padding))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return the whole table for each sample, shape (n, V, D)."""
        return _ROWS.per_sample(role, *_spread(g, call))

    def add_squares(self, role: str, g: Tensor, call: Call, slot: Slot) -> None:
        """Add the looked-up rows only."""
        for rows in slot.chunks(len(g), self.work(g, call)):
            _ROWS.add_squares(role, *_spread(g[rows], call.holding(t[rows] for t in call.saved)), slot)

    def work(self, g: Tensor, call: Call) -> int:
        """Count the gradients of the rows, and their copies."""
        return 4 * call.saved[0][0].numel() * g.shape[-1]


def _padding(weight: Tensor, padding_idx: int | None) -> int | None:
    return None if padding_idx is None else padding_idx % len(weight)


def _refuse_longer(index: Tensor, weight: Tensor, max_norm: float | None, norm_type: float) -> None:
    """Refuse rows that the forward pass would shorten: it edits the table, whose importance is asked for as it is."""
    if max_norm is None:
        return
    if bool((torch.linalg.vector_norm(weight.detach()[index], norm_type, -1) > max_norm).any()):
        raise UnsupportedModelError(
            f"expected a forward pass that leaves the weights alone, saw an embedding with rows longer than max_norm="
            f"{max_norm}, which it shortens in place: run the model once on this data before, or shorten them yourself"
        )


def _looked_up(g: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Add the gradients of one row within one sample; no shape depends on the data, so that no device must wait."""
    vocabulary, _ = call.options
    keys, rows = _rows(g, call)
    keys, order = torch.sort(keys)
    new = torch.ones_like(keys)
    new[1:] = keys[1:] != keys[:-1]
    place = new.cumsum(0) - 1
    sums = torch.zeros(rows.shape, dtype=g.dtype, device=g.device).index_add_(0, place, rows[order])
    return sums, torch.zeros_like(keys).scatter_(0, place, keys).remainder(vocabulary)


def _rows(g: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Number every looked-up row by sample · V + index, and leave the padding out."""
    vocabulary, padding = call.options
    index = call.saved[0].flatten(1).to(torch.long)
    samples = torch.arange(len(g), device=g.device).unsqueeze(1)
    keys, rows = (samples * vocabulary + index).flatten(), g.flatten(0, -2)
    if padding is None:
        return keys, rows
    return keys, rows * (index.flatten() != padding).unsqueeze(1)


def _spread(g: Tensor, call: Call) -> tuple[Tensor, Call]:
    """Give every index of a bag its gradient: what an embedding of the same indices would get."""
    index, share = call.saved
    return g.unsqueeze(-2) * share.unsqueeze(-1), call.holding([index])
