"""Retraining: a fresh model, trained without the forget set."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, fresh_model


@final
@attrs.frozen(kw_only=True)
class Retrain(TrainingUnlearner):
    """θ' = A(D_r): a fresh model from ``UnlearningInputs.model_factory``, trained on the retain set alone.

    Its weights and buffers are then copied into the model, none of whose trainable weights or buffers has any influence
    on them; frozen parameters stay as they are, and the fresh model is trained around them. This is exact unlearning,
    at its full price. A fair comparison needs the epochs, the optimiser and the learning rate of the original training:
    set them. Always in train mode: dropout is on, BatchNorm starts afresh.

    Good for: everything, at the full cost: what the others are measured against.

    Source: the definition of exact unlearning, as in Bourtoule et al. 2021 (Machine Unlearning).

    Examples:
        >>> import torch
        >>> one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> retain = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> inputs = UnlearningInputs(retain_data=retain, model_factory=lambda: nn.Linear(2, 2))
        >>> for model in (one, other):
        ...     _ = Retrain(epochs=2).unlearn(model, inputs)
        >>> torch.equal(one.weight, other.weight)
        True
    """

    name: ClassVar[str] = "retrain"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA, Need.MODEL_FACTORY})

    epochs: int = option(20, at_least=1, doc="passes over the retain set")
    mode: str = attrs.field(default="train", init=False)

    def student(self, model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
        return fresh_model(model, inputs)

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Retrain]
