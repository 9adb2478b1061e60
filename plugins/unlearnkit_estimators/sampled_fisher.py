"""The Fisher information proper: labels come from the model's own predictions, drawn or in expectation."""

import abc
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    DiagonalFisher,
    EstimatorTraits,
    Importance,
    ImportanceEstimator,
    Objective,
    hookimpl,
    option,
)
from unlearnkit.data import tensors
from unlearnkit.importance import Accumulator
from unlearnkit_estimators.loss_free import logits

_STEPS = 2**53  # float64 holds every multiple of 2⁻⁵³ in [0, 1)


@attrs.frozen(kw_only=True)
class _ModelLabels(ImportanceEstimator):
    """Squares per-sample gradients on one pass of `DiagonalFisher`, for labels and weights that the model gives."""

    traits: ClassVar[EstimatorTraits] = EstimatorTraits(labels="model", batch_free=True, leaves_weights=True)

    memory_budget: int = option(
        64, at_least=1, meaning=False, doc="in MiB: bound on the per-sample work held at one time"
    )

    @abc.abstractmethod
    def relabel(self, batch: Any, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield labels and their weights, both of shape (batch,), for class probabilities of shape (batch, classes)."""

    def accumulator(self, model: nn.Module, *, objective: Objective) -> Accumulator:
        return _Relabelled(self, model, objective)

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        one = self.accumulator(model, objective=objective)
        one.add(batch)
        return one.result()


@final
@attrs.frozen(kw_only=True)
class SampledFisher(_ModelLabels):
    """F_j = Σ_i 1/m Σ_{k≤m} (∂/∂θ_j −log p(ŷ_ik | x_i))² with ŷ_ik ~ p(· | x_i): an unbiased estimate of the Fisher.

    Each sample gets ``draws`` = m labels, drawn by inverting its own distribution function at uniform numbers that
    depend on ``seed`` and on the bytes of that sample alone (all its tensors, labels included). So the draw follows a
    sample through any order and any batch, totals add up over disjoint data, and equal samples get equal labels.

    The objective says only where the logits are (`CrossEntropy.logits`, also inside another objective's
    ``objective``), of shape (batch, classes); the loss is −log softmax(f(x))_ŷ.

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), with drawn labels in
    the place of the expectation.

    Examples:
        >>> from unlearnkit import CrossEntropy
        >>> model = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> data = [(torch.tensor([[2.0], [4.0]]),)]  # p = (½, ½): both labels give the gradient ±x/2
        >>> SampledFisher().estimate(model, data, objective=CrossEntropy()).totals["weight"]
        tensor([[5.],
                [5.]])
    """

    name: ClassVar[str] = "sampled-fisher"

    seed: int = option(0, at_least=0, doc="of the labels that are drawn")
    draws: int = option(1, symbol="m", at_least=1, doc="labels drawn for each sample; their squares are averaged")

    def relative_error(self, sizes: Mapping[int, int]) -> None:
        """Return None: a rare label with a large gradient can be off by any factor."""
        del sizes

    def relabel(self, batch: Any, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        cumulative = p.cumsum(1)[:, :-1].contiguous()
        share = p.new_full((len(p),), 1 / self.draws)
        for u in uniforms(batch, seed=self.seed, draws=self.draws):
            yield torch.searchsorted(cumulative, u.to(p.device)[:, None], right=True).squeeze(1), share


@final
@attrs.frozen(kw_only=True)
class ExactFisher(_ModelLabels):
    """F_j = Σ_i Σ_c p(c | x_i)·(∂/∂θ_j −log p(c | x_i))²: the diagonal of the Fisher information, exactly.

    It costs as many passes as there are classes, and more classes than ``max_classes`` are refused; `SampledFisher`
    estimates the same at the price of one. A batch's labels are not used; the objective is as there.

    Source: Kunstner, Balles and Hennig 2019 (Limitations of the Empirical Fisher Approximation), the Fisher.

    Examples:
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

    max_classes: int = option(32, at_least=1, meaning=False, doc="refuse more classes: each costs one pass")

    def relabel(self, batch: Any, p: Tensor) -> Iterator[tuple[Tensor, Tensor]]:  # noqa: ARG002 - for all batches
        """Give every class as a label, with its probability as the weight."""
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
    """Passes each batch to one pass of `DiagonalFisher` several times, with other labels and weights each time."""

    fixes_norm_gradients: ClassVar[bool] = True

    def __init__(self, estimator: _ModelLabels, model: nn.Module, objective: Objective) -> None:
        self._estimator, self._model, self._objective = estimator, model, objective
        fisher = DiagonalFisher(memory_budget=estimator.memory_budget)
        self._pass = fisher.accumulator(model, objective=GivenLabels(objective=objective))
        self._count = 0

    def add(self, batch: Any) -> None:
        with torch.no_grad():
            p = logits(self._model, batch, objective=self._objective, classes=True).double().softmax(1)
        for labels, weights in self._estimator.relabel(batch, p):
            self._pass.add((batch, labels, weights))
        self._count += len(p)

    def result(self) -> Importance:
        return attrs.evolve(self._pass.result(), count=self._count)


@final
@attrs.frozen(kw_only=True)
class GivenLabels(Objective):
    """−√w·log p(y | x) for triples (batch, labels y, weights w): its squared gradient is w·(∂ −log p(y | x))²."""

    objective: Objective

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        inner, labels, weights = batch
        found = logits(model, inner, objective=self.objective, classes=True)
        losses: Tensor = nn.functional.cross_entropy(found, labels, reduction="none") * weights.sqrt().to(found.dtype)
        return losses


def uniforms(batch: Any, *, seed: int, draws: int) -> Tensor:
    """Hash each sample (dimension 0 of every tensor) to uniforms in [0, 1): shape (draws, samples), float64, CPU."""
    columns = [_bytes(t) for t in tensors(batch)]
    salt = seed.to_bytes((seed.bit_length() + 8) // 8, "big")
    rows = []
    for sample in zip(*columns, strict=True):
        state = hashlib.blake2b(salt.rjust(16, b"\0"), digest_size=8)
        for part in sample:
            state.update(len(part).to_bytes(8, "big") + part)
        root = state.digest()
        words = (hashlib.blake2b(root + k.to_bytes(8, "big"), digest_size=8).digest() for k in range(draws))
        rows.append([(int.from_bytes(word, "big") >> 11) / _STEPS for word in words])
    return torch.tensor(rows, dtype=torch.float64).T.contiguous()


def _bytes(tensor: Tensor) -> list[bytes]:
    """Return the bytes of each row."""
    rows = tensor.detach().to("cpu").contiguous().reshape(len(tensor), -1)
    if rows.numel() == 0:
        return [b""] * len(tensor)
    return [row.numpy().tobytes() for row in rows.view(torch.uint8)]


@hookimpl
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:
    return [SampledFisher, ExactFisher]
