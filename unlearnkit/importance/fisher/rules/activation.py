"""Activations with a parameter: ∂ℓ_n/∂a_c = Σ_t g_ntc min(x_ntc, 0)."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.rule import Call, Rule


@final
class PReLURule(Rule):
    """y = max(x, 0) + a · min(x, 0), with one a for all channels or one for each: dimension 1 of x."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = (torch.prelu, Tensor.prelu)

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _prelu(*args, **kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return Σ g min(x, 0), shape (n, C) or (n, 1); see `Rule.per_sample`."""
        slope = g * call.saved[0].clamp(max=0)
        theta = call.weights[role]
        assert theta is not None, "a role with a gradient has a weight"
        if theta.numel() == 1 or slope.dim() < 3:
            return slope.flatten(1).sum(1, keepdim=True)
        return slope.flatten(3).sum((1, 3)) if slope.dim() > 3 else slope.sum(1)


def _prelu(input: Tensor, weight: Tensor) -> Call:  # noqa: A002 - torch's name
    return Call(weights={"weight": weight}, saved=(input,))
