"""Any other function of data and parameters: that function alone, one sample at a time."""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from unlearnkit.fisher.intercept import Seen, in_place
from unlearnkit.fisher.rule import Call, Rule
from unlearnkit.fisher.script import UnprovenError


@final
class AnyFunction(Rule):
    """∂ℓ_n/∂θ = (∂f(x_n, θ)/∂θ)ᵀ g_n, by running f again on each sample and differentiating it.

    Needs one output with the batch in dimension 0; arguments whose dimension 0 is the batch are cut by sample.

    Args:
        seen: The call in the probe.
        rows: Length of dimension 0 of its output there.
    """

    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    converts: ClassVar[bool] = False

    def __init__(self, seen: Seen, rows: int) -> None:
        self._function = seen.function
        self._names = seen.names
        if in_place(seen.function):
            raise UnprovenError(f"{'/'.join(seen.names)}: used in place by a function that no rule covers")
        tracked = {id(t) for t in seen.tracked}
        self._roles = tuple(
            "weight" if id(t) in tracked else "data" if t.dim() and t.shape[0] == rows else "fixed"
            for t in seen.tensors
        )

    def bind(self, *args: Any, **kwargs: Any) -> Call | None:
        """See `Rule.bind`."""
        found: list[Tensor] = []
        template = _template((args, kwargs), found)
        if len(found) != len(self._roles):
            return None
        weights = {f"{i}": t for i, (t, role) in enumerate(zip(found, self._roles, strict=True)) if role == "weight"}
        saved = tuple(t for t, role in zip(found, self._roles, strict=True) if role == "data")
        fixed = [None if role == "data" else t.detach() for t, role in zip(found, self._roles, strict=True)]
        return Call(weights=weights, saved=saved, options=(template, fixed))

    def per_sample(self, role: str, g: Tensor, call: Call) -> Tensor:
        """Differentiate sample by sample; see `Rule.per_sample`."""
        template, fixed = call.options
        weight = fixed[int(role)].detach().requires_grad_()
        found = []
        for n in range(g.shape[0]):
            data = iter([t[n] for t in call.saved])
            values = [next(data) if t is None else weight if i == int(role) else t for i, t in enumerate(fixed)]
            args, kwargs = _filled(template, iter(values))
            with torch.enable_grad():
                y = self._function(*args, **kwargs)
                (part,) = torch.autograd.grad(y, weight, g[n].to(y.dtype), allow_unused=True)
            found.append(torch.zeros_like(weight) if part is None else part)
        return torch.stack(found)


@final
class _Hole:
    """The place of a tensor."""


def _template(value: Any, found: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        found.append(value)
        return _Hole
    if type(value) in {tuple, list}:
        return type(value)(_template(item, found) for item in value)
    if isinstance(value, dict):
        return {key: _template(item, found) for key, item in value.items()}
    return value


def _filled(value: Any, tensors: Any) -> Any:
    if value is _Hole:
        return next(tensors)
    if type(value) in {tuple, list}:
        return type(value)(_filled(item, tensors) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, tensors) for key, item in value.items()}
    return value
