"""ℓ1-sparse unlearning: training goes on on the retain set, with a penalty that makes weights small."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.models import trainable
from unlearnkit.unlearning import EpochConfig


@final
@attrs.frozen(kw_only=True)
class L1Sparse(TrainingUnlearner):
    """Minimise ℓ(θ; D_r) + γ_t·‖θ‖₁, with γ_t = γ·(1 − t/T) in epoch t = 0, …, T − 1 of T.

    The penalty falls linearly, so that the last epochs repair what the first removed. It covers every trainable weight.
    The forget set is not used.

    Good for: whole classes, with a few epochs on the retain set.

    Source: Jia et al. 2023 (Model Sparsity Can Simplify Machine Unlearning), ℓ1-sparse MU with the decreasing schedule,
    whose γ_t is twice this one; the authors' code, ``FT_l1``, has this one.

    Examples:
        >>> model, retain = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> before = model.weight.abs().sum()
        >>> _ = L1Sparse(gamma=10.0, epochs=1).unlearn(model, UnlearningInputs(retain_data=retain))
        >>> bool(model.weight.abs().sum() < before)
        True
    """

    name: ClassVar[str] = "l1-sparse"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA})

    gamma: float = option(
        5e-4, symbol="γ", at_least=0.0, doc="weight of the penalty in the first epoch", search=(1e-5, 1e-2)
    )

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterator[EpochConfig]:
        weights = list(trainable(model).values())
        for epoch in range(self.epochs):
            gamma = self.gamma * (1 - epoch / self.epochs)

            def loss(student: nn.Module, batch: Any, gamma: float = gamma) -> Tensor:
                norm = torch.stack([p.abs().sum() for p in weights]).sum()
                return inputs.mean_loss(student, batch) + gamma * norm

            yield EpochConfig(batches=inputs.retain_data, loss=loss, name=f"epoch {epoch + 1} of {self.epochs}")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [L1Sparse]
