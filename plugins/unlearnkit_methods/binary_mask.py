"""Binary mask: set to zero every weight that matters more to the forget set than to the reference."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Unlearner, UnlearnerTraits, hookimpl, option


@final
@attrs.frozen(kw_only=True)
class BinaryMask(ElementwiseUnlearner):
    """θ' = 0 where F_f > λ·F_r, else θ.

    Source: the binary mask of the notebook that this project follows: the selection of selective synaptic dampening
    (Foster et al. 2024), with the dampening replaced by 0.

    Example:
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

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:
        return torch.where(forget > self.lam * reference, torch.zeros_like(theta), theta)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [BinaryMask]
