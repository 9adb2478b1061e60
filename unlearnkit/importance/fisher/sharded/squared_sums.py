"""Fisher information of a model that is sharded over processes: totals lie where the pieces of the weights lie."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, take
from unlearnkit.importance.estimator import Accumulator
from unlearnkit.importance.fisher.engine.per_sample_fallback import refuse_batch_statistics
from unlearnkit.importance.fisher.engine.totals import add_exactly
from unlearnkit.importance.fisher.sharded.fsdp_parameters import Leaves, Receive
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import trainable, wide

Terms = Callable[[int], Iterable[tuple[Tensor, float]]]
"""For a batch of so many samples: the factor of every sample's loss, and that of the squared gradient; one per term."""


@final
class SquaredSums(Accumulator):
    """Σ_b Σ_t c_t (∂/∂θ Σ_{i∈b} w_ti ℓ_i)²: batch gradients are summed over all processes, then squared."""

    def __init__(self, model: nn.Module, objective: Objective, *, terms: Terms, counted: Callable[[int], int]) -> None:
        refuse_batch_statistics(model)
        self._model, self._objective, self._terms, self._counted = model, objective, terms, counted
        named = trainable(model)
        self._leaves = Leaves(model, named)
        self._totals = {name: self._leaves.zeros(name, wide(p.dtype)) for name, p in named.items()}
        self._count = 0

    def add(self, batch: Any) -> None:
        """Add one batch, the same in every process."""
        size = batch_size(batch)
        own, rows = self._leaves.own(batch)
        losses = check_losses(self._objective.losses(self._model, own), own, objective=self._objective)
        terms = list(self._terms(size))
        for i, (weights, factor) in enumerate(terms):
            mine = (weights[rows] if rows is not None else torch.zeros(1)).to(losses.device, losses.dtype)
            self._square(losses, mine, factor, keep=i + 1 < len(terms), real=rows is not None)
        self._count += self._counted(size)

    def _square(self, losses: Tensor, weights: Tensor, factor: float, *, keep: bool, real: bool) -> None:
        def receive(name: str, gradient: Tensor) -> None:
            total = self._totals[name]
            g = self._leaves.piece(name, real_part(gradient, real=real).to(total.dtype))
            total.addcmul_(g, g, value=factor)

        self._leaves.backward(losses, weights, receive, keep=keep)

    def result(self) -> Importance:
        return Importance(totals=self._leaves.spread(self._totals), count=self._count)

    def differentiated(self) -> Mapping[str, Tensor] | None:
        return self._leaves.tensors


@final
class PieceTotals:
    """Running totals where the pieces of the weights lie."""

    def __init__(
        self, leaves: Leaves, named: Mapping[str, nn.Parameter], *, double: bool, compensated: bool = False
    ) -> None:
        self._leaves = leaves
        self._totals = {
            name: leaves.zeros(name, torch.float64 if double else wide(p.dtype)) for name, p in named.items()
        }
        self._lost = {name: torch.zeros_like(t) for name, t in self._totals.items() if compensated}

    def dtype(self, name: str) -> torch.dtype:
        return self._totals[name].dtype

    def add(self, name: str, piece: Tensor) -> None:
        """Add a term, which may be overwritten."""
        if name in self._lost:
            add_exactly(self._totals[name], self._lost[name], piece.to(self.dtype(name)))
        else:
            self._totals[name].add_(piece)

    def result(self) -> dict[str, Tensor]:
        whole = {name: t + self._lost[name] if name in self._lost else t for name, t in self._totals.items()}
        return self._leaves.spread(whole)


@final
class SampleSquares:
    """Σ_i (∂ℓ_i/∂θ)², every process differentiating one sample at a time: exact for any model."""

    def __init__(self, model: nn.Module, objective: Objective, leaves: Leaves) -> None:
        self._model, self._objective, self._leaves = model, objective, leaves

    def hand_out(self, batch: Any, dtype: Callable[[str], torch.dtype], receive: Receive) -> Tensor:
        """Hand out the squares of all samples of a batch, the same batch in every process, as pieces."""
        losses = []
        for start in range(0, batch_size(batch), self._leaves.size):
            own, rows = self._leaves.own(take(batch, slice(start, start + self._leaves.size)))
            loss = self._one(own, dtype, receive, real=rows is not None)
            losses += [loss] if rows is not None else []
        return torch.cat(losses) if losses else loss[:0]

    def _one(self, one: Any, dtype: Callable[[str], torch.dtype], receive: Receive, *, real: bool) -> Tensor:
        def square(name: str, gradient: Tensor) -> None:
            receive(name, self._leaves.squares(name, real_part(gradient, real=real), dtype(name)))

        losses = check_losses(self._objective.losses(self._model, one), one, objective=self._objective)
        self._leaves.backward(losses, torch.full_like(losses, float(real)), square)
        return losses.detach()


def real_part(gradient: Tensor, *, real: bool) -> Tensor:
    """Zeros for a padding sample, whose gradient may be infinite."""
    return gradient if real else torch.zeros_like(gradient)
