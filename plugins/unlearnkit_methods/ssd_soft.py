"""Soft synaptic dampening: shrink every weight by how much of its importance is the forget set's, without threshold."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Unlearner, UnlearnerTraits, hookimpl, option


@final
@attrs.frozen(kw_only=True)
class SoftSynapticDampening(ElementwiseUnlearner):
    """θ' = θ·F_r/(F_r + α·F_f); where that is 0/0, θ.

    The factor is 1 where F_f = 0, ½ where α·F_f = F_r and 0 where F_r = 0 < F_f. There is no threshold: nearly every
    weight changes a little, and a small α is what keeps the model.

    Good for: studying dampening: it moves every weight a little, and on the digits forgets little.

    Source: a smooth form of Foster, Schoepf and Brintrup 2024 (Fast Machine Unlearning Without Retraining Through
    Selective Synaptic Dampening), whose factor F_r/F_f it approaches for α·F_f ≫ F_r and λ = 1/α; we know of no paper
    that has it.

    Examples:
        >>> theta, forget = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([3.0, 1.0, 5.0, 0.0])
        >>> SoftSynapticDampening(alpha=1.0).rule(theta, forget, torch.tensor([1.0, 1.0, 0.0, 0.0]))
        tensor([0.2500, 0.5000, 0.0000, 1.0000])
    """

    name: ClassVar[str] = "ssd-soft"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        local=True, non_amplifying=True, sign_preserving=True, odd=True, scale_free=True
    )

    alpha: float = option(0.1, symbol="α", at_least=0, doc="weight of F_f; 0 changes nothing", search=(1e-3, 1e3))

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        beta = 1 / (1 + self.alpha * (forget / reference))  # unlike F_r/(F_r + α·F_f), this cannot overflow
        kept = (forget == 0) | torch.isnan(beta)  # NaN: 0·∞, for α or a quotient of 0 or ∞
        return torch.where(kept, theta, theta * beta)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [SoftSynapticDampening]
