"""The random-sign sketch of the diagonal Fisher: right on average, on any model, for one ordinary backward pass."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, copy_to
from unlearnkit.distributed.sharded_tensors import is_sharded_model
from unlearnkit.importance.estimator import Accumulator, EstimatorTraits, ImportanceEstimator
from unlearnkit.importance.fisher.engine.nan_check import NanCheck
from unlearnkit.importance.fisher.engine.per_sample_fallback import refuse_batch_statistics
from unlearnkit.importance.fisher.sharded.squared_sums import SquaredSums
from unlearnkit.importance.importance import Importance
from unlearnkit.models.objective import Objective, check_losses
from unlearnkit.models.parameters import dense, trainable, wide
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class SketchedFisher(ImportanceEstimator):
    """Σ_b 1/R Σ_r (∂/∂θ Σ_{i∈b} s_ri ℓ_i)² with random signs s_ri = ±1; its mean over the signs is Σ_i (∂ℓ_i/∂θ)².

    E[(Σ_i s_i g_i)²] = Σ_i g_i², because E[s_i s_j] = 0 for i ≠ j: an unbiased estimate of `DiagonalFisher` that needs
    no rule for any layer. All signs +1 would be the squared batch gradient, which is biased. The relative standard
    deviation of a weight's total is at most √(2 / (batches · R)) when its gradients are spread evenly over the
    batches; a result says it as its ``relative_error``.

    The signs depend on the seed, on the position in the pass and on the batch size, so that totals are reproducible
    but do depend on batch size and order. They do not depend on the data: two passes over different data draw the same
    signs, and what they find is correlated: for two batches of n samples with gradients a_i and b_i the covariance is
    2·[(Σ_i a_i b_i)² − Σ_i a_i² b_i²] / R, which for a = b is the variance itself. So errors of importances that are
    added (over groups, segments of a pass or processes) are counted as if they could not cancel.

    Examples:
        >>> from unlearnkit.models.objective import CrossEntropy
        >>> model = nn.Linear(2, 2, bias=False)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))] * 2
        >>> SketchedFisher(probes=8).estimate(model, data, objective=CrossEntropy()).count
        4
    """

    name: ClassVar[str] = "sketched-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(quadratic=True, sharded=True, leaves_weights=True)

    probes: int = option(1, at_least=1, symbol="R", doc="independent sign patterns per batch; each costs a backward")
    seed: int = option(0, at_least=0, doc="of the signs")

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Sketch one batch alone; see `ImportanceEstimator.estimate_batch`."""
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Start a pass with fresh signs; see `ImportanceEstimator.accumulator`."""
        coins = torch.Generator().manual_seed(self.seed)
        if is_sharded_model(model):
            return SquaredSums(model, objective, terms=partial(_terms, coins, self.probes), counted=int)
        return _Sketch(model, objective, probes=self.probes, coins=coins)

    def relative_error(self, sizes: Mapping[int, int]) -> float:
        """Bound the relative standard deviation of a weight's total over the signs; a result has it as an attribute.

        Var[(Σ_i s_i g_i)²] = 2·[(Σ_i g_i²)² − Σ_i g_i⁴] ≤ 2·(1 − 1/n)·(Σ_i g_i²)² in a batch of n samples, because
        Σ_i g_i⁴ ≥ (Σ_i g_i²)²/n, and the signs of two batches of a pass are independent.

        Args:
            sizes: Batch size n_b to how many batches of that size: of a pass that is planned, say.

        Returns:
            √(2 Σ_b n_b (n_b − 1) / R) / Σ_b n_b, for weights whose squares are spread evenly over the batches, each
            according to its size. It is 0 for batches of one sample, and at most √(2 / (batches · R)) when all have one
            size. A weight that a single batch moves may have up to √(2 / R), whatever there are of others.

        Raises:
            ValueError: Not one sample.

        Examples:
            >>> SketchedFisher(probes=2).relative_error({50: 98})
            0.1
        """
        samples = sum(size * times for size, times in sizes.items())
        if samples < 1:
            raise ValueError(f"expected at least one batch, saw {dict(sizes)}")
        pairs = sum(size * (size - 1) * times for size, times in sizes.items())
        return math.sqrt(2 * pairs / self.probes) / samples


@final
class _Sketch(Accumulator):
    """One pass: its generator draws all signs, on the CPU, so that they are the same on every device."""

    def __init__(self, model: nn.Module, objective: Objective, *, probes: int, coins: torch.Generator) -> None:
        refuse_batch_statistics(model)
        self._model, self._objective, self._probes = model, objective, probes
        self._named = trainable(model)
        self._totals = {name: torch.zeros_like(p, dtype=wide(p.dtype)) for name, p in self._named.items()}
        self._coins = coins
        self._count = 0
        self._nan_check = NanCheck(self._totals.values, lambda: self._totals)

    def add(self, batch: Any) -> None:
        losses = check_losses(self._objective.losses(self._model, batch), batch, objective=self._objective)
        parameters = list(self._named.values())
        for probe in range(self._probes):
            signs = copy_to(_signs(self._coins, len(losses)), losses.device).to(losses.dtype)
            # A scalar: to begin with a vector, torch imports symbolic algebra, 37 MiB of it.
            signed, keep = (losses * signs).sum(), probe + 1 < self._probes
            found = torch.autograd.grad(signed, parameters, allow_unused=True, retain_graph=keep)
            for total, g in zip(self._totals.values(), map(dense, found), strict=True):
                if g is not None:
                    wider = g.to(total.dtype)
                    total.addcmul_(wider, wider, value=1 / self._probes)
        self._count += batch_size(batch)
        self._nan_check.end_batch()

    def result(self) -> Importance:
        self._nan_check.finish(self._totals)
        return Importance(totals=self._totals, count=self._count)


def _terms(coins: torch.Generator, probes: int, size: int) -> list[tuple[Tensor, float]]:
    return [(_signs(coins, size), 1 / probes) for _ in range(probes)]


def _signs(coins: torch.Generator, size: int) -> Tensor:
    return 2 * torch.randint(0, 2, (size,), generator=coins) - 1
