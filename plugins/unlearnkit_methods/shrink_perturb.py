"""Shrink and perturb: move all weights towards a fresh model, then train on the retain set."""

from collections.abc import Iterable
from typing import ClassVar, final

import attrs
import torch
from torch import nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.models import trainable
from unlearnkit.unlearning import EpochConfig, fresh_model


@final
@attrs.frozen(kw_only=True)
class ShrinkPerturb(TrainingUnlearner):
    """θ ← s·θ + (1 − s)·θ_0, θ_0 the weights of a fresh model; then training on the retain set.

    The fresh model comes from ``UnlearningInputs.model_factory``. s = 1 is fine-tuning, s = 0 retraining (but for the
    statistics of BatchNorm, which go on from those of the original). The smaller s, the less is left of the forget set
    and the more epochs are needed: with half of those of the training, s of 0.09, 0.16 and 0.4 came nearest to
    retraining, features included, on three networks (docs/results/cifar10.md, whole class).

    Good for: whole classes, sub-classes and random samples. It changes the features too, on CIFAR-10 with 8 of the 18
    epochs of retraining; among the nearest to retraining on the digits.

    Source: Ash and Adams 2020 (On Warm-Starting Neural Network Training), shrink and perturb, where the second term is
    Gaussian noise; with a fresh model, and for unlearning, it is this project's.

    Examples:
        >>> model, retain = nn.Linear(1, 2), [(torch.eye(1), torch.tensor([0]))]
        >>> inputs = UnlearningInputs(retain_data=retain, model_factory=lambda: nn.Linear(1, 2))
        >>> ShrinkPerturb(epochs=1).unlearn(model, inputs).changed
        4
    """

    name: ClassVar[str] = "shrink-perturb"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA, Need.MODEL_FACTORY})
    traits: ClassVar[UnlearnerTraits] = attrs.evolve(
        TrainingUnlearner.traits, forgets={"full-class", "sub-class", "random", "corrupted"}
    )

    shrink: float = option(
        0.4, symbol="s", at_least=0.0, at_most=1.0, doc="share of the old weights that is kept", search=(0.05, 0.5)
    )

    def student(self, model: nn.Module, inputs: UnlearningInputs) -> nn.Module:
        fresh = trainable(fresh_model(model, inputs))
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.lerp_(fresh[name], 1 - self.shrink)
        return model

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        return EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [ShrinkPerturb]
