"""Finds the option value that selects a given share of weights, whatever the scale of the importances."""

from functools import partial
from math import sqrt
from typing import Any, Self, final

import attrs
from torch import Tensor, nn

from unlearnkit.importance.importance import Importance
from unlearnkit.models.parameters import trainable
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner, RuleOperands
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.options import options_of

LOWEST, HIGHEST = 1e-30, 1e30
_STEPS = 60
_TOLERANCE = 0.01  # relative to the requested share


@final
@attrs.frozen(kw_only=True, eq=False)
class OperatingCurve:
    """The share of trainable weights that an edit changes, with λ at its lowest, as a function of a monotone option."""

    unlearner: ElementwiseUnlearner
    option: str
    strength: str
    weights: dict[str, Tensor] = attrs.field(repr=False)
    forget: Importance
    reference: Importance | None
    _counted: dict[float, float] = attrs.field(factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls,
        unlearner: ElementwiseUnlearner,
        model: nn.Module,
        *,
        forget: Importance,
        reference: Importance | None,
        option: str = "",
        strength: str | None = None,
    ) -> Self:
        """Choose the options that were not given (``""`` is no strength), and copy the weights."""
        monotone = [o.name for o in options_of(unlearner) if o.name in unlearner.promises().monotone]
        for name in (option, strength):
            if name and name not in monotone:
                raise ConfigurationError(f"{unlearner.name}: expected a monotone option, {monotone}, saw {name!r}")
        if not monotone:
            raise ConfigurationError(
                f"{unlearner.name!r} declares no monotone option, so no selected fraction can be found. "
                "Declare its monotone options in its traits, or tune another method"
            )
        weights = {name: p.detach().clone() for name, p in trainable(model).items()}
        curve = partial(cls, weights=weights, forget=forget, reference=reference)
        if not option:
            curves = (curve(unlearner=unlearner, option=name, strength="") for name in monotone)
            option = max(curves, key=lambda c: c.fraction(_lowest(unlearner, c.option))).option
        if strength is None:
            strength = next((name for name in monotone if name != option), "")
        if strength:
            unlearner = with_options(unlearner, **{strength: _lowest(unlearner, strength)})
        return curve(unlearner=unlearner, option=option, strength=strength)

    def fraction(self, value: float) -> float:
        """The selected fraction at a value of the option."""
        if value not in self._counted:
            method = with_options(self.unlearner, **{self.option: value}).prepare(self.forget, self.reference)
            operands = (RuleOperands.of(name, w, self.forget, self.reference) for name, w in self.weights.items())
            changed = sum(map(method.applier().count, operands))
            self._counted[value] = changed / sum(w.numel() for w in self.weights.values())
        return self._counted[value]

    def value_for(self, fraction: float) -> float:
        """Find the value that selects a share of weights, within 1 %, by bisection on its logarithm."""
        option = next(o for o in options_of(self.unlearner) if o.name == self.option)
        high = min((bound for sign, bound in option.bounds if sign == "≤"), default=HIGHEST)
        low = max(_lowest(self.unlearner, self.option), LOWEST)
        if self.fraction(low) <= fraction:
            return low
        for _ in range(_STEPS):
            middle = sqrt(low) * sqrt(high)
            found = self.fraction(middle)
            if abs(found - fraction) <= _TOLERANCE * fraction:
                return middle
            low, high = (middle, high) if found > fraction else (low, middle)
        return high


def with_options(unlearner: ElementwiseUnlearner, **options: float) -> ElementwiseUnlearner:
    """A copy of a method with other options."""
    method: Any = unlearner
    changed: ElementwiseUnlearner = attrs.evolve(method, **options)
    return changed


def _lowest(unlearner: ElementwiseUnlearner, name: str) -> float:
    bounds = next(o for o in options_of(unlearner) if o.name == name).bounds
    return max((bound if sign == "≥" else max(bound, LOWEST) for sign, bound in bounds if sign != "≤"), default=LOWEST)
