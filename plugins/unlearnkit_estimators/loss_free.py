"""Importance without a loss: how much each weight moves the size of the model's output; labels are not needed."""

import abc
from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    ConfigurationError,
    EstimatorTraits,
    Importance,
    ImportanceEstimator,
    MismatchError,
    Objective,
    hookimpl,
    option,
)
from unlearnkit.models import trainable


@attrs.frozen(kw_only=True)
class _Sensitivity(ImportanceEstimator):
    """Ω = Σ_b w_b·|∂/∂θ mean_{i∈b} size(f(x_i))|."""

    traits: ClassVar[EstimatorTraits] = EstimatorTraits(unit="batch", labels="none", leaves_weights=True)

    weights: str = option(
        "size", choices=("size", "equal"), doc="weight of a batch: its size, or equal (parity with published code)"
    )

    @abc.abstractmethod
    def size(self, outputs: Tensor) -> Tensor:
        """Return one number for each row of outputs."""

    def estimate_batch(self, model: nn.Module, batch: Any, *, objective: Objective) -> Importance:
        sizes, named = self.size(logits(model, batch, objective=objective)), trainable(model)
        grads = torch.autograd.grad(sizes.mean(), list(named.values()), allow_unused=True)
        terms, totals = len(sizes) if self.weights == "size" else 1, {}
        for (name, p), g in zip(named.items(), grads, strict=True):
            wide = torch.promote_types(p.dtype, torch.float32)
            totals[name] = torch.zeros_like(p, dtype=wide) if g is None else terms * g.to_dense().to(wide).abs()
        return Importance(totals=totals, count=terms)


@final
@attrs.frozen(kw_only=True)
class LossFree(_Sensitivity):
    """Ω = Σ_b w_b·|∂/∂θ mean_{i∈b} ‖f(x_i)‖²₂|, f(x) the logits: one term per batch, no labels.

    It depends on batch size and order, which are recorded: gradients of opposite sign cancel inside a batch. With a
    batch size of 1 it is the sensitivity of memory aware synapses that the method comes from. Ω holds absolute values,
    not squares: α and λ that were tuned to a Fisher information mean nothing with it.

    With ``weights="size"`` a batch of n samples has w_b = n and counts n terms; ``"equal"``, w_b = 1 and one term a
    batch, is what the published code does. The objective says only where the logits are (`CrossEntropy.logits`, also
    inside another objective's ``objective``); its loss is not used, and a batch may have no labels.

    Source: Foster, Schoepf and Brintrup 2024 (Loss-Free Machine Unlearning) and the published code (LFSSD); after
    Aljundi et al. 2018 (Memory Aware Synapses), the importance Ω.

    Examples:
        >>> from unlearnkit import CrossEntropy
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> data = [(torch.tensor([[1.0, 0.0]]),), (torch.tensor([[1.0, -2.0]]),)]  # f = 1 and −1
        >>> LossFree().estimate(model, data, objective=CrossEntropy()).totals["weight"]  # |2·f·x| = (2, 0) and (2, 4)
        tensor([[4., 4.]])
    """

    name: ClassVar[str] = "loss-free"

    def size(self, outputs: Tensor) -> Tensor:
        return outputs.square().sum(1)


@final
@attrs.frozen(kw_only=True)
class OutputNorm(_Sensitivity):
    """Ω = Σ_b w_b·|∂/∂θ mean_{i∈b} ‖f(x_i)‖₂|, f(x) the logits: as `LossFree`, with the norm not squared.

    Not squaring keeps samples with large outputs from dominating. At f(x) = 0 the gradient is taken as 0.

    Source: Schoepf, Foster and Brintrup 2024 (Potion: Towards Poison Unlearning), the method XLF, and the published
    code.
    """

    name: ClassVar[str] = "output-norm"

    def size(self, outputs: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(outputs, dim=1)
        return norms


def logits(model: nn.Module, batch: Any, *, objective: Objective, classes: bool = False) -> Tensor:
    """Return the logits of an objective, or of one inside its ``objective``, one flat row per sample, ≥ float32.

    With ``classes`` their shape must be (batch, classes) from the start: one distribution for each sample.
    """
    inner: Any = objective
    while not hasattr(inner, "logits"):
        if not isinstance(getattr(inner, "objective", None), Objective):
            raise ConfigurationError(
                f"expected an objective with a method logits(model, batch), as CrossEntropy has, saw "
                f"{type(objective).__name__}: add one that returns the model's logits for each sample"
            )
        inner = inner.objective
    found: Any = inner.logits(model, batch)
    if not isinstance(found, Tensor) or found.dim() == 0 or (classes and found.dim() != 2):
        seen = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        wanted = "of shape (batch, classes)" if classes else "with one row per sample"
        raise MismatchError(f"expected logits {wanted}, saw {seen}")
    return found.to(torch.promote_types(found.dtype, torch.float32)).reshape(len(found), -1)


@hookimpl
def unlearnkit_register_estimators() -> Iterable[type[ImportanceEstimator]]:
    return [LossFree, OutputNorm]
