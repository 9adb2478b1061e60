"""Squares of the gradients of batch means: what the SSD paper's code and the notebook compute."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size
from unlearnkit.distributed.sharded_tensors import is_sharded_model
from unlearnkit.importance.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.importance.fisher.engine.nan_check import NanCheck
from unlearnkit.importance.fisher.engine.totals import accumulate
from unlearnkit.importance.fisher.sharded.squared_sums import SquaredSums
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import dense, device_of, trainable, wide
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class BatchedDiagonalFisher(ImportanceEstimator):
    """Σ_b w_b (∂/∂θ mean_{i∈b} −log p(y_i | x_i))²: one term per batch, not per sample.

    This is not the Fisher information: it depends on the batch size and the order of the data, both of which are
    recorded, and thresholds tuned on it mean nothing elsewhere. It is here because published α and λ were tuned to it.

    With ``weights="size"`` a batch of n samples has w_b = n and counts n terms, so that a last, smaller batch weighs
    less; ``"equal"``, w_b = 1 and one term a batch, is what the notebook and the paper's code do. `Importance.mean` is
    their normalised variant, `Importance.unnormalised` the other.

    Source: Foster, Schoepf and Brintrup 2024 (Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening), the published code.

    Examples:
        >>> from unlearnkit.models.objective import CrossEntropy
        >>> model = nn.Linear(2, 2, bias=False)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))] * 2
        >>> BatchedDiagonalFisher(weights="equal").estimate(model, data, objective=CrossEntropy()).count
        2
    """

    name: ClassVar[str] = "batched-diagonal-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(unit="batch", quadratic=True, sharded=True, leaves_weights=True)

    weights: str = option(
        "size",
        choices=("size", "equal"),
        doc="weight of a batch: its size, or equal (parity with published code)",
    )
    reduction: str = option(
        "mean", choices=("mean", "sum"), doc="square the gradient of the batch's mean loss or of its sum"
    )

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Start a pass; a batch stays one batch when the model is sharded. See `ImportanceEstimator.accumulator`."""
        if is_sharded_model(model):
            return SquaredSums(model, objective, terms=self._weighted, counted=self._counted)
        if device_of(model).type == "cuda":
            return InOrder(partial(self.estimate_batch, model, objective=objective))
        return super().accumulator(model, objective=objective)

    def _weighted(self, size: int) -> list[tuple[Tensor, float]]:
        each = 1 / size if self.reduction == "mean" else 1.0
        return [(torch.full((size,), each, dtype=torch.float64), float(self._counted(size)))]

    def _counted(self, size: int) -> int:
        return size if self.weights == "size" else 1

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Square one batch gradient; see `ImportanceEstimator.estimate_batch`."""
        named = trainable(model)
        losses = check_losses(objective.losses(model, batch), batch, objective=objective)
        loss = losses.mean() if self.reduction == "mean" else losses.sum()
        grads = map(dense, torch.autograd.grad(loss, list(named.values()), allow_unused=True))
        terms = self._counted(batch_size(batch))
        totals = {
            name: torch.zeros_like(p, dtype=wide(p.dtype)) if g is None else terms * g.to(wide(g.dtype)).square()
            for (name, p), g in zip(named.items(), grads, strict=True)
        }
        return Importance(totals=totals, count=terms)


@final
class InOrder(Accumulator):
    """Adds the importances of batches, and checks them for NaN."""

    def __init__(self, measure: Callable[[Any], Importance]) -> None:
        self._measure, self._count = measure, 0
        self._totals: dict[str, Tensor] = {}
        self._nan_check = NanCheck(self._totals.values, lambda: self._totals)

    def add(self, batch: Any) -> None:
        one = self._measure(batch)
        accumulate(self._totals, one.totals)
        self._count += one.count
        self._nan_check.end_batch()

    def result(self) -> Importance:
        self._nan_check.finish(self._totals)
        return Importance(totals=self._totals, count=self._count)
