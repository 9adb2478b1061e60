"""Objectives whose labels are not those of the data; `DiagonalFisher` squares their gradients."""

from typing import Any, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import ConfigurationError, MismatchError, Objective


@final
@attrs.frozen(kw_only=True)
class GivenLabels(Objective):
    """−√w·log p(y | x) for labels y and weights w beside the batch: its squared gradient is w·(∂ −log p(y | x))².

    It takes triples (batch, labels, weights).

    Attributes:
        objective: Says where the logits are.
    """

    objective: Objective

    def losses(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the weighted loss of every sample; see `Objective.losses`."""
        inner, labels, weights = batch
        found = logits(model, inner, objective=self.objective)
        losses: Tensor = nn.functional.cross_entropy(found, labels, reduction="none") * weights.sqrt().to(found.dtype)
        return losses


def logits(model: nn.Module, batch: Any, *, objective: Objective) -> Tensor:
    """Ask an objective, or the one that it wraps, for the logits.

    Args:
        model: Called once.
        batch: With or without labels.
        objective: Has a method ``logits(model, batch)``, or an attribute ``objective`` that has.

    Returns:
        Shape (batch, classes), at least float32.

    Raises:
        ConfigurationError: The objective has no logits.
        MismatchError: The logits have another shape.
    """
    inner: Any = objective
    while not hasattr(inner, "logits"):
        if not isinstance(getattr(inner, "objective", None), Objective):
            raise ConfigurationError(
                f"expected an objective with a method logits(model, batch), as CrossEntropy has, saw "
                f"{type(objective).__name__}: a model's own labels can only be drawn from a distribution over classes"
            )
        inner = inner.objective
    found = inner.logits(model, batch)
    if not isinstance(found, Tensor) or found.dim() != 2:
        seen = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise MismatchError(f"expected logits of shape (batch, classes), saw {seen}: one distribution for each sample")
    return found.to(torch.promote_types(found.dtype, torch.float32))
