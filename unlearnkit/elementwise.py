"""Methods whose edit of a weight depends on that weight and its two importances alone."""

import abc
from typing import ClassVar, Self, final

import torch
from torch import Tensor, nn

from unlearnkit.errors import MismatchError, NonFiniteError
from unlearnkit.evidence import Evidence, Need
from unlearnkit.importance import Importance
from unlearnkit.parameters import bits, trainable, wide
from unlearnkit.unlearner import Unlearner


class ElementwiseUnlearner(Unlearner):
    """θ' = rule(θ, F_f, F_r), for every weight by itself. Subclass it and write `rule`.

    Importances arrive as means over samples (or as totals, when they are `Importance.unnormalised`).

    Example:
        >>> import attrs
        >>> @final
        ... @attrs.frozen(kw_only=True)
        ... class Halve(ElementwiseUnlearner):
        ...     name = "halve"
        ...     def rule(self, theta, forget, reference):
        ...         return torch.where(forget > reference, theta / 2, theta)
        >>> ones = torch.ones(2)
        >>> Halve().edit(ones, torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
        tensor([1.0000, 0.5000])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})

    @abc.abstractmethod
    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Return the edited weights: a pure function, element by element, nothing edited in place.

        Args:
            theta: Weights, any shape, float32 or float64.
            forget: F_f ≥ 0, same shape, dtype and device.
            reference: F_r ≥ 0, likewise; zeros when the method does not need it.

        Returns:
            θ', same shape, dtype and device.
        """

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Look at all importances at once before the first weight is edited; override it for a global quantile, say.

        Args:
            forget: Importance for the forget set.
            reference: Importance for the reference set, or None when the method does not need one.

        Returns:
            The object that edits: this one, or a copy made by ``attrs.evolve``.
        """
        del forget, reference
        return self

    @final
    def edit(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Apply the rule to one tensor: in at least float32, checked, cast back.

        Args:
            theta: Weights, any shape and floating dtype.
            forget: F_f, same shape and device, float32 or float64.
            reference: F_r, likewise.

        Returns:
            θ' in the dtype of ``theta``; weights that the rule leaves alone keep their bits.

        Raises:
            MismatchError: The rule returned another shape, dtype or device, or edited its arguments.
            NonFiniteError: The rule made a NaN or an infinity of finite numbers.
        """
        dtype = torch.promote_types(wide(theta.dtype), torch.promote_types(forget.dtype, reference.dtype))
        who = f"method {self.name!r}: rule()"
        # Copies, so that a rule that edits in place hurts nobody; not in inference mode, which counts no versions.
        with torch.inference_mode(mode=False), torch.no_grad():
            arguments = tuple(t.detach().to(dtype, copy=True) for t in (theta, forget, reference))
            versions = [t._version for t in arguments]  # noqa: SLF001 - the only cheap way to see an edit in place
            edited = self.rule(*arguments)
            if [t._version for t in arguments] != versions:  # noqa: SLF001
                raise MismatchError(f"{who} must not edit its arguments in place: return a new tensor")
            _check_edited(edited, arguments[0], who=who)
            result: Tensor = edited.to(theta.dtype)
            if bool((torch.isfinite(theta) & ~torch.isfinite(result)).any()):
                raise NonFiniteError(f"{who} made NaN or infinity of finite weights")
            # The way there and back quietens a signalling NaN: what the rule left alone keeps its own bits.
            return torch.where(bits(edited) == bits(theta.to(dtype)), theta, result)

    @final
    def apply(self, model: nn.Module, evidence: Evidence) -> None:
        """Edit every trainable parameter by name; see `Unlearner.apply`."""
        forget = evidence.forget
        assert forget is not None, "checked by Evidence.check: FORGET_IMPORTANCE is among the needs"
        ready = self.prepare(forget, evidence.reference)
        f, r = forget.mean(), evidence.reference.mean() if evidence.reference else {}
        with torch.no_grad():
            for name, p in trainable(model).items():
                f_p = f[name].to(p.device)
                r_p = r[name].to(p.device) if name in r else torch.zeros_like(f_p)
                try:
                    p.copy_(ready.edit(p, f_p, r_p))
                except Exception as error:
                    error.add_note(f"while {self.name!r} edited {name!r}")
                    raise


def _check_edited(edited: object, theta: Tensor, *, who: str) -> None:
    if not isinstance(edited, Tensor):
        raise MismatchError(f"{who} must return a tensor, saw {type(edited).__name__}")
    if (edited.shape, edited.dtype, edited.device) != (theta.shape, theta.dtype, theta.device):
        raise MismatchError(
            f"{who} must return shape {tuple(theta.shape)}, {theta.dtype} on {theta.device}, saw "
            f"{tuple(edited.shape)}, {edited.dtype} on {edited.device}"
        )
