"""Selective synaptic dampening: shrink the weights that matter far more to the forget set than to the reference."""

from collections.abc import Iterable
from typing import ClassVar, Self, final

import attrs
import torch
from torch import Tensor

from unlearnkit import (
    ElementwiseUnlearner,
    Importance,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    hookimpl,
    option,
)
from unlearnkit.importance import Role, ratio_threshold


@final
@attrs.frozen(kw_only=True)
class SelectiveSynapticDampening(ElementwiseUnlearner):
    """θ' = θ·min(λ·F_r/F_f, 1) where F_f > α·F_r, else θ.

    Prefer ``fraction`` to α: the same α selects other shares of the weights on another model, with another estimator
    or another training seed. α is then the `ratio_threshold`, and the report says how large it is.

    Good for: a whole class, in the time of two passes, when the outputs are what matters: the features stay. Set
    `fraction`, or tune; a fixed α mostly does nothing or everything.

    Source: Foster, Schoepf and Brintrup 2024 (Fast Machine Unlearning Without Retraining Through Selective Synaptic
    Dampening), the selection and the dampening, with F_r measured on the full set D.

    Examples:
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
    fraction: float | None = option(
        None,
        above=0,
        at_most=1,
        doc="share of the weights to select, in place of α; `rule` and `edit` ignore it",
        search=(1e-4, 0.3),
        replaces="alpha",
    )
    epsilon: float = option(
        0.0, symbol="ε", at_least=0, doc="added to F_f in the quotient; 1e-8 for parity with the notebook, else 0"
    )

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Choose the α that selects the fraction, where one is given."""
        if self.fraction is None:
            return self
        assert reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        return attrs.evolve(self, alpha=ratio_threshold(forget, reference, fraction=self.fraction))

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        """Dampen where F_f > α·F_r; a selected weight has F_f > 0, so the quotient needs no epsilon."""
        # (λ·F_r)/F_f in this order, as in the published code, for the same bits.
        beta = (self.lam * reference).div_(forget + self.epsilon if self.epsilon else forget).clamp_(max=1.0)
        beta.nan_to_num_(nan=0.0)  # ∞·0: what the reference does not need is zeroed at every λ, at ∞ too
        return torch.where(forget > self.alpha * reference, theta * beta, theta)

    def promises(self) -> UnlearnerTraits:
        """Take promises back: of scale when ε ≠ 0, which has the unit of F_f; those that a fraction breaks."""
        by_alpha = self.fraction is None
        monotone = {"alpha", "lam"} if by_alpha else {"lam"}
        return attrs.evolve(self.traits, scale_free=self.epsilon == 0, sharded=by_alpha, monotone=monotone)

    def remarks(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say when α is so large that no weight can be selected, or none but by the error of an estimate."""
        forget, reference = inputs.forget, inputs.reference
        if forget is None or reference is None or reference.role is not Role.FULL or forget.count == 0:
            return ()
        if self.fraction is not None:
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

    def remarks_if_unchanged(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say which α would have selected weights."""
        if inputs.forget is None or inputs.reference is None:
            return ()
        largest, alpha = (ratio_threshold(inputs.forget, inputs.reference, fraction=share) for share in (0, 0.01))
        return (f"The largest F_f/F_r seen is {largest:.5g}; α = {alpha:.6g} would select 1 % of the weights.",)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [SelectiveSynapticDampening]
