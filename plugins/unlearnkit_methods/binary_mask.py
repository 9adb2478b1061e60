"""Binary mask: set to zero every weight that matters more to the forget set than to the reference."""

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
from unlearnkit.importance import ratio_threshold


@final
@attrs.frozen(kw_only=True)
class BinaryMask(ElementwiseUnlearner):
    """θ' = 0 where F_f > λ·F_r, else θ.

    Prefer ``fraction`` to λ, which selects other shares of the weights on another model: λ is then the
    `ratio_threshold`, and the report says how large it is.

    Good for: the same as `ssd`, with weights set to zero: a whole class in the outputs, by `fraction` or tuned.

    Source: the binary mask of the notebook that this project follows: the selection of selective synaptic dampening
    (Foster et al. 2024), with the dampening replaced by 0.

    Examples:
        >>> theta, forget = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 0.0])
        >>> BinaryMask(lam=1.0).rule(theta, forget, torch.tensor([1.0, 1.0, 0.0]))
        tensor([1., 0., 3.])
    """

    name: ClassVar[str] = "binary-mask"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        local=True,
        non_amplifying=True,
        sign_preserving=True,
        odd=True,
        scale_free=True,
        idempotent=True,
        monotone={"lam"},
    )

    lam: float = option(1.0, symbol="λ", above=0, doc="mask weights whose F_f is above λ times F_r")
    fraction: float | None = option(
        None,
        above=0,
        at_most=1,
        doc="share of the weights to mask, in place of λ; `rule` and `edit` ignore it",
        search=(1e-4, 0.3),
        replaces="lam",
    )

    def prepare(self, forget: Importance, reference: Importance | None) -> Self:
        """Choose the λ that selects the fraction, where one is given."""
        if self.fraction is None:
            return self
        assert reference is not None, "REFERENCE_IMPORTANCE is among the needs"
        return attrs.evolve(self, lam=ratio_threshold(forget, reference, fraction=self.fraction))

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        return torch.where(forget > self.lam * reference, torch.zeros_like(theta), theta)

    def promises(self) -> UnlearnerTraits:
        """Take back what a fraction breaks."""
        by_lam = self.fraction is None
        return attrs.evolve(self.traits, sharded=by_lam, monotone={"lam"} if by_lam else ())

    def remarks_if_unchanged(self, inputs: UnlearningInputs) -> tuple[str, ...]:
        """Say which λ would have selected weights."""
        if inputs.forget is None or inputs.reference is None:
            return ()
        largest, lam = (ratio_threshold(inputs.forget, inputs.reference, fraction=share) for share in (0, 0.01))
        return (f"The largest F_f/F_r seen is {largest:.5g}; λ = {lam:.6g} would select 1 % of the weights.",)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [BinaryMask]
