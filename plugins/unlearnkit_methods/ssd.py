"""Selective synaptic dampening: shrink the weights that matter far more to the forget set than to the reference."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.importance import Role


@final
@attrs.frozen(kw_only=True)
class SelectiveSynapticDampening(ElementwiseUnlearner):
    """θ' = θ·min(λ·F_r/F_f, 1) where F_f > α·F_r, else θ.

    Source: Foster, Schoepf and Brintrup 2024 (Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening), the selection and the dampening, with F_r measured on the full set D.

    Example:
        >>> theta, forget = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([10.0, 20.0, 0.0])
        >>> SelectiveSynapticDampening(alpha=10.0, lam=1.0).rule(theta, forget, torch.tensor([1.0, 1.0, 0.0]))
        tensor([1.0000, 0.0500, 1.0000])
    """

    name: ClassVar[str] = "ssd"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        local=True, non_amplifying=True, sign_preserving=True, odd=True, scale_free=True, monotone={"alpha", "lam"}
    )

    alpha: float = option(10.0, symbol="α", above=0, source="the selection", doc="selection weighting")
    lam: float = option(1.0, symbol="λ", at_least=0, source="the dampening", doc="dampening constant")
    epsilon: float = option(
        0.0, symbol="ε", at_least=0, doc="added to F_f in the quotient; 1e-8 for parity with the notebook, else 0"
    )

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Dampen where F_f > α·F_r; a selected weight has F_f > 0, so the quotient needs no epsilon."""
        # (λ·F_r)/F_f in this order, as in the published code, for the same bits.
        beta = (self.lam * reference).div_(forget + self.epsilon if self.epsilon else forget).clamp_(max=1.0)
        beta.nan_to_num_(nan=0.0)  # ∞·0: what the reference does not need is zeroed at every λ, at ∞ too
        return torch.where(forget > self.alpha * reference, theta * beta, theta)

    def promises(self) -> UnlearnerTraits:
        """Take the promise of scale back when ε ≠ 0: ε has the unit of F_f and does not scale with it."""
        return attrs.evolve(self.traits, scale_free=self.epsilon == 0)

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say when α is so large that no weight can be selected, or none but by the error of an estimate."""
        forget, reference = inputs.forget, inputs.reference
        if forget is None or reference is None or reference.role is not Role.FULL or forget.count == 0:
            return ()
        # Each forgotten sample is in D too, so the totals obey F_f ≤ F_D and the means F_f/F_D ≤ 1/p, p = |D_f|/|D|.
        bound = reference.count / forget.count
        if forget.fingerprint.unit != "sample" or self.alpha < bound:
            return ()
        counts = f"{reference.count} terms in the full set, {forget.count} in the forget set"
        limit = f"F_f/F_D is at most 1/p = {bound:.6g} ({counts})"
        if forget.relative_error == reference.relative_error == 0:
            return (f"α = {self.alpha:g} can select nothing: {limit}.",)
        # What is drawn for D_f need not be what is drawn for it within D: an estimate of F_f may be above that of F_D.
        return (f"α = {self.alpha:g} can select nothing but by the error of estimated importances: exact, {limit}.",)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [SelectiveSynapticDampening]
