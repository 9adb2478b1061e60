"""Parameters handed to every sample: class tokens, learned queries, first states; by ``expand`` and its relatives."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.rule import Call, Rule

_SPREADING: frozenset[Callable[..., Any]] = frozenset(
    {Tensor.expand, Tensor.expand_as, Tensor.repeat, Tensor.tile, torch.tile, torch.broadcast_to, Tensor.broadcast_to}
)


def spreading(function: Callable[..., Any], theta: Tensor, y: Any, samples: int) -> Rule | None:
    """Find the rule of a call whose result is one copy of a parameter per sample."""
    if function not in _SPREADING or not isinstance(y, Tensor) or samples == 1:
        return None
    shape, seen = tuple(theta.shape), tuple(y.shape)
    one = shape[1:] if theta.dim() == y.dim() and shape[0] == 1 else shape
    if seen == (samples, *one):
        return SpreadRule()
    if theta.dim() > 1 and shape[1] == 1 and seen == (shape[0], samples, *shape[2:]):
        return SpreadSecondRule()
    return None


@final
class SpreadRule(Rule):
    """y_n = θ for every sample n, so ∂ℓ_n/∂θ = g_n."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _spread(args, kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return g_n; see `Rule.per_sample`."""
        del role, call
        return g.sum(1)


@final
class SpreadSecondRule(Rule):
    """y_ln = θ_l for every sample n, which stands in dimension 1 (the first state of a recurrent layer)."""

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    free_rows: ClassVar[bool] = True

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        return _spread(args, kwargs)

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Return g_n, whose rows are those of θ; see `Rule.per_sample`."""
        del role, call
        return g


def _spread(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    # Options, so that several uses are not taken for one use with more rows.
    return Call(weights={"theta": args[0] if args else kwargs.get("input")}, options="one per sample")
