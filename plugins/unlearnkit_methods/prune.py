"""Pruning: set to zero every weight that matters to the forget set."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Need, Unlearner, UnlearnerTraits, hookimpl, option


@final
@attrs.frozen(kw_only=True)
class Prune(ElementwiseUnlearner):
    """θ' = 0 where F_f > τ, else θ.

    With τ = 0 every weight that any forgotten sample touches is removed: the baseline that destroys models.

    Good for: a baseline: it takes every weight that the forget set touches, and the rest of the model with them.

    Source: the naive pruning of the notebook that this project follows; pruning by importance is the starting point
    of Foster et al. 2024 (Selective Synaptic Dampening) too.

    Examples:
        >>> theta, forget = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 2.0])
        >>> Prune(tau=0.5).rule(theta, forget, torch.zeros(3))
        tensor([1., 2., 0.])
    """

    name: ClassVar[str] = "prune"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_IMPORTANCE})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        local=True, non_amplifying=True, sign_preserving=True, odd=True, idempotent=True, monotone={"tau"}
    )

    tau: float = option(0.0, symbol="τ", at_least=0, doc="prune weights whose forget importance is above this")

    def rule(self, theta: Tensor, forget: Tensor, reference: Tensor) -> Tensor:  # noqa: ARG002 - not needed here
        return torch.where(forget > self.tau, torch.zeros_like(theta), theta)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Prune]
