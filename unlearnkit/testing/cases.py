"""The inputs that laws are tried on: values that can be drawn, printed and pasted back."""

from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Importance, Need


@final
@attrs.frozen(kw_only=True, eq=False)
class RuleInputs:
    """One tensor of weights and its two importances.

    Attributes:
        theta: θ, any shape and floating dtype.
        forget: F_f ≥ 0, same shape, float32 or float64.
        reference: F_r ≥ 0, likewise.
        extra: What a law needs besides: an order, a cut, an exponent, two values of an option.
    """

    theta: Tensor
    forget: Tensor
    reference: Tensor
    extra: Any = None

    def map(self, function: Any) -> "RuleInputs":
        """Apply a function to all three tensors.

        Args:
            function: Tensor to tensor.

        Returns:
            New inputs.
        """
        return attrs.evolve(
            self, theta=function(self.theta), forget=function(self.forget), reference=function(self.reference)
        )

    def arguments(self, method: ElementwiseUnlearner) -> tuple[Tensor, Tensor, Tensor]:
        """Copy the tensors as the framework would hand them to `ElementwiseUnlearner.edit`.

        Args:
            method: Gets zeros for F_r when it does not need a reference importance.

        Returns:
            θ, F_f, F_r.
        """
        needed = Need.REFERENCE_IMPORTANCE in method.needs
        reference = self.reference.clone() if needed else torch.zeros_like(self.reference)
        return self.theta.clone(), self.forget.clone(), reference

    def wide(self, method: ElementwiseUnlearner) -> tuple[Tensor, ...]:
        """Copy the tensors as `ElementwiseUnlearner.edit` hands them to ``rule``: in one dtype, at least float32.

        Args:
            method: As for `arguments`.

        Returns:
            θ, F_f, F_r.
        """
        dtype = torch.promote_types(torch.promote_types(self.theta.dtype, torch.float32), self.forget.dtype)
        return tuple(t.to(dtype) for t in self.arguments(method))

    def ready(self, method: ElementwiseUnlearner) -> ElementwiseUnlearner:
        """Let a method look at the importances first, as the framework does.

        Args:
            method: The method.

        Returns:
            The object that edits.
        """
        _, forget, reference = self.arguments(method)
        needed = Need.REFERENCE_IMPORTANCE in method.needs
        return method.prepare(
            Importance(totals={"weight": forget}, count=1),
            Importance(totals={"weight": reference}, count=1) if needed else None,
        )

    def edited(self, method: ElementwiseUnlearner) -> Tensor | None:
        """Edit with a method.

        Args:
            method: The method.

        Returns:
            θ', or None where the method fails: that is one law's business, not every law's.
        """
        try:
            return self.ready(method).edit(*self.arguments(method))
        except Exception:  # noqa: BLE001 - the law "runs" of the kind reports it
            return None
