"""Fine-tuning: training goes on, on the retain set alone."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl
from unlearnkit.unlearning import EpochConfig


@final
@attrs.frozen(kw_only=True)
class FineTune(TrainingUnlearner):
    """θ ← θ − η·∇ℓ(θ; D_r): training goes on, on the retain set alone.

    The forget set is not used: the model forgets it only as far as further training on the retain set overwrites it
    (catastrophic forgetting). The baseline that every method has to beat. Train mode by default, as in training.

    Good for: repairing the damage of another edit. By itself it forgets part of a whole class on the digits, the
    outputs of one on CIFAR-10, and little of anything else.

    Source: Golatkar, Achille and Soatto 2020 (Eternal Sunshine of the Spotless Net), the baseline
    "fine-tune"; Warnecke et al. 2023 (Machine Unlearning of Features and Labels), fine-tuning.

    Examples:
        >>> import torch
        >>> model, retain = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> FineTune(epochs=1).unlearn(model, UnlearningInputs(retain_data=retain)).changed
        6
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA})

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [FineTune]
