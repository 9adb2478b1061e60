"""Parameters handed to every sample: class tokens and learned queries, by ``expand`` and its relatives."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.fisher.rule import Call, Rule

SPREADING: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.tile, torch.tile, torch.broadcast_to, Tensor.broadcast_to}
)


@final
class SpreadRule(Rule):
    """y_n = θ for every sample n, so ∂ℓ_n/∂θ = g_n.

    Args:
        function: The one of `SPREADING` that was called.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def covers(self, theta: Tensor, y: Any, samples: int) -> bool:
        """Say whether the result is one copy of the parameter per sample.

        Args:
            theta: The parameter.
            y: What the function returned.
            samples: n.

        Returns:
            True when y is θ once per sample, in dimension 0.
        """
        if not isinstance(y, Tensor):
            return False
        one = tuple(theta.shape[1:]) if theta.dim() == y.dim() and theta.shape[0] == 1 else tuple(theta.shape)
        return samples > 1 and tuple(y.shape) == (samples, *one)

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        theta = args[0] if args else kwargs.get("input")
        return Call(weights={"theta": theta})

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return g_n; see `Rule.per_sample`."""
        del role, call
        return g.sum(1)
