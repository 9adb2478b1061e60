"""Fisher information in the proper sense: labels come from the model's own predictions, drawn or in expectation."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    Accumulator,
    ConfigurationError,
    DiagonalFisher,
    EstimatorTraits,
    Importance,
    ImportanceEstimator,
    Objective,
    hookimpl,
    option,
)
from unlearnkit_estimators.sampled_fisher.objectives import GivenLabels, logits
from unlearnkit_estimators.sampled_fisher.uniform import uniforms


@final
@attrs.frozen(kw_only=True)
class SampledFisher(ImportanceEstimator):
    """F_j = Σ_i 1/m Σ_{k≤m} (∂/∂θ_j −log p(ŷ_ik | x_i))² with ŷ_ik ~ p(· | x_i): an unbiased estimate of the Fisher.

    Each sample gets ``draws`` = m labels, drawn by inverting its own distribution function at uniform numbers that
    depend on ``seed`` and on the bytes of that sample alone (of all its tensors, labels included where a batch has
    them). So the draw follows a sample through any order and any batch, totals add up over disjoint data, and equal
    samples get equal labels. The batch's own labels are not otherwise looked at.

    The objective says only where the logits are (`CrossEntropy.logits`, also inside another objective's
    ``objective``), of shape (batch, classes); the loss is −log softmax(f(x))_ŷ.

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), the Fisher, with one
    or more drawn labels in the place of the expectation.

    Example:
        >>> from unlearnkit import CrossEntropy
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[2.0], [4.0]]),)]  # p = (½, ½): both labels give the gradient ±x/2
        >>> SampledFisher().estimate(model, data, objective=CrossEntropy()).totals["weight"]
        tensor([[5.],
                [5.]])
    """

    name: ClassVar[str] = "sampled-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(labels="model", batch_free=True)

    seed: int = option(0, at_least=0, doc="of the labels that are drawn")
    draws: int = option(1, symbol="m", at_least=1, doc="labels drawn for each sample; their squares are averaged")
    memory_budget: int = option(
        64, at_least=1, meaning=False, doc="in MiB: bound on the per-sample work held at one time"
    )

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Draw labels, then square per-sample gradients on one pass of `DiagonalFisher`."""
        return _Relabelled(self._labels, DiagonalFisher(memory_budget=self.memory_budget), model, objective)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Measure one batch alone; see `ImportanceEstimator.estimate_batch`."""
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()

    def relative_error(self, sizes: Mapping[int, int]) -> None:
        """Return None: a rare label with a large gradient can be off by any factor."""
        del sizes

    def _labels(self, batch: Any, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        cumulative = p.cumsum(1)[:, :-1].contiguous()
        share = p.new_full((len(p),), 1 / self.draws)
        for u in uniforms(batch, seed=self.seed, draws=self.draws):
            yield torch.searchsorted(cumulative, u.to(p.device)[:, None], right=True).squeeze(1), share


@final
@attrs.frozen(kw_only=True)
class ExactFisher(ImportanceEstimator):
    """F_j = Σ_i Σ_c p(c | x_i)·(∂/∂θ_j −log p(c | x_i))²: the diagonal of the Fisher information, exactly.

    It costs as many passes as there are classes: C times `DiagonalFisher`, and more classes than ``max_classes`` are
    refused. `SampledFisher` estimates the same at the price of one. A batch's labels are not looked at.

    The objective says only where the logits are (`CrossEntropy.logits`, also inside another objective's
    ``objective``), of shape (batch, classes).

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), the Fisher.

    Example:
        >>> import math
        >>> from unlearnkit import CrossEntropy
        >>> model = nn.Linear(1, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.zero_(), model.bias.copy_(torch.tensor([math.log(3.0), 0.0]))  # p = (¾, ¼)
        >>> found = ExactFisher().estimate(model, [(torch.tensor([[2.0]]),)], objective=CrossEntropy())
        >>> found.totals["weight"]  # x²·(¾·¼² + ¼·¾²) = 4·3/16
        tensor([[0.7500],
                [0.7500]])
    """

    name: ClassVar[str] = "exact-fisher"
    traits: ClassVar[EstimatorTraits] = EstimatorTraits(labels="model", batch_free=True)

    max_classes: int = option(32, at_least=1, meaning=False, doc="refuse more classes: each costs one pass")
    memory_budget: int = option(
        64, at_least=1, meaning=False, doc="in MiB: bound on the per-sample work held at one time"
    )

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        """Square per-sample gradients for every class on one pass of `DiagonalFisher`."""
        return _Relabelled(self._labels, DiagonalFisher(memory_budget=self.memory_budget), model, objective)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        """Measure one batch alone; see `ImportanceEstimator.estimate_batch`."""
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()

    def _labels(self, batch: Any, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        del batch
        classes = p.shape[1]
        if classes > self.max_classes:
            raise ConfigurationError(
                f"{self.name}: expected at most max_classes = {self.max_classes} classes, saw {classes}: it costs "
                f"{classes} times as much as diagonal-fisher; take sampled-fisher, or raise max_classes"
            )
        for label in range(classes):
            yield torch.full((len(p),), label, device=p.device), p[:, label]


@final
class _Relabelled(Accumulator):
    """Gives each batch to one pass of `DiagonalFisher` again and again, with other labels and weights each time.

    Args:
        labels: Of a batch and its class probabilities: labels and weights of the samples, as often as wanted.
        fisher: Squares the gradients.
        model: In eval mode.
        objective: Says where the logits are.
    """

    steady: ClassVar[bool] = True

    def __init__(
        self,
        labels: Callable[[Any, Tensor], Iterator[tuple[Tensor, Tensor]]],
        fisher: DiagonalFisher,
        model: nn.Module,
        objective: Objective,
    ) -> None:
        self._labels, self._model, self._objective = labels, model, objective
        self._pass = fisher.accumulator(model, objective=GivenLabels(objective=objective))
        self._count = 0

    def add(self, batch: Any) -> None:
        with torch.no_grad():
            p = logits(self._model, batch, objective=self._objective).double().softmax(1)
        for labels, weights in self._labels(batch, p):
            self._pass.add((batch, labels, weights))
        self._count += len(p)

    def result(self) -> Importance:
        return attrs.evolve(self._pass.result(), count=self._count)


@hookimpl
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:
    """Offer the estimators of this package."""
    return [SampledFisher, ExactFisher]
