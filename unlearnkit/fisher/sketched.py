"""The random-sign sketch of the diagonal Fisher: right on average, on any model, for one ordinary backward pass."""

import math
from functools import partial
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.batches import batch_size
from unlearnkit.errors import MismatchError
from unlearnkit.estimator import Accumulator, EstimatorTraits, ImportanceEstimator, options_text
from unlearnkit.feeding import sent
from unlearnkit.fisher.general import refuse_batch_statistics
from unlearnkit.fisher.sharded import SquaredSums
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective, check_losses
from unlearnkit.options import option
from unlearnkit.parameters import dense, trainable, wide
from unlearnkit.provenance import Fingerprint
from unlearnkit.shards import is_spread


@final
@attrs.frozen(kw_only=True)
class SketchedFisher(ImportanceEstimator):
    """Σ_b 1/R Σ_r (∂/∂θ Σ_{i∈b} s_ri ℓ_i)² with random signs s_ri = ±1; its mean over the signs is Σ_i (∂ℓ_i/∂θ)².

    E[(Σ_i s_i g_i)²] = Σ_i g_i², because E[s_i s_j] = 0 for i ≠ j: an unbiased estimate of `DiagonalFisher` that needs
    no rule for any layer. All signs +1 would be the squared batch gradient, which is biased. The relative standard
    deviation of a weight's total is at most √(2 / (batches · R)) when its gradients are spread evenly over the
    batches; see `relative_error`.

    The signs depend on the seed, on the position in the pass and on the batch size, so that totals are reproducible
    but do depend on batch size and order.

    Example:
        >>> from unlearnkit.objective import CrossEntropy
        >>> model = nn.Linear(2, 2, bias=False)
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))] * 2
        >>> SketchedFisher(probes=8).estimate(model, data, objective=CrossEntropy()).count
        4
    """

    name: ClassVar[str] = "sketched-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(quadratic=True, sharded=True)

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
        if is_spread(model):
            return SquaredSums(model, objective, terms=partial(_terms, coins, self.probes), counted=int)
        return _Sketch(model, objective, probes=self.probes, coins=coins)

    def relative_error(self, batches: int | Importance) -> float:
        """Bound the relative standard deviation of a total.

        Args:
            batches: A result, which says how many batches it is of; or how many there are to be.

        Returns:
            √(2 / (batches · R)): for weights whose gradients are spread evenly over the batches; up to √(2 / R) for
            those that only one batch moves.

        Raises:
            ValueError: Fewer than one batch.
            MismatchError: A result of another estimator, or with other options.

        Example:
            >>> SketchedFisher(probes=2).relative_error(100)
            0.1
        """
        if isinstance(batches, Importance):
            self._check_mine(batches.fingerprint)
            batches = sum(batches.trail.sizes.values())
        if batches < 1:
            raise ValueError(f"expected at least one batch, saw {batches}")
        return math.sqrt(2 / (batches * self.probes))

    def _check_mine(self, seen: Fingerprint) -> None:
        mine = (self.name, options_text(self))
        if (seen.estimator, seen.options) != mine:
            raise MismatchError(
                f"expected an importance of {mine[0]} with {mine[1]}, saw one of {seen.estimator} with "
                f"{seen.options or 'no options'}: ask the estimator that it came from"
            )


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

    def add(self, batch: Any) -> None:
        losses = check_losses(self._objective.losses(self._model, batch), batch, objective=self._objective)
        parameters = list(self._named.values())
        for probe in range(self._probes):
            signs = sent(_signs(self._coins, len(losses)), losses.device).to(losses.dtype)
            # A scalar: to begin with a vector, torch imports symbolic algebra, 37 MiB of it.
            signed, keep = (losses * signs).sum(), probe + 1 < self._probes
            found = torch.autograd.grad(signed, parameters, allow_unused=True, retain_graph=keep)
            for total, g in zip(self._totals.values(), map(dense, found), strict=True):
                if g is not None:
                    wider = g.to(total.dtype)
                    total.addcmul_(wider, wider, value=1 / self._probes)
        self._count += batch_size(batch)

    def result(self) -> Importance:
        return Importance(totals=self._totals, count=self._count)


def _terms(coins: torch.Generator, probes: int, size: int) -> list[tuple[Tensor, float]]:
    return [(_signs(coins, size), 1 / probes) for _ in range(probes)]


def _signs(coins: torch.Generator, size: int) -> Tensor:
    return 2 * torch.randint(0, 2, (size,), generator=coins) - 1
