"""Random labels: learn wrong labels for the forget set and the right ones for the retain set."""

from collections.abc import Iterable
from itertools import chain
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl
from unlearnkit.unlearning import EpochConfig, wrong_label_loss


@final
@attrs.frozen(kw_only=True)
class RandomLabel(TrainingUnlearner):
    """Minimise ℓ(θ; x_f, y') in one pass over D_f and ℓ(θ; x_r, y_r) in one over D_r, epoch after epoch; y' ≠ y_f.

    y' is drawn anew in each epoch, uniformly from the other classes. `salun` is the same for the weights alone that
    matter to the forget set.

    Good for: whole classes, with both sets at hand.

    Source: Golatkar, Achille and Soatto 2020 (Eternal Sunshine of the Spotless Net), the baseline "random labels";
    Graves, Nagisetty and Ganesh 2021 (Amnesiac Machine Learning), unlearning by random labels of the forget set
    followed by training on what is retained, whose labels are drawn once.

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> RandomLabel(epochs=1).unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain)).changed
        4
    """

    name: ClassVar[str] = "random-label"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def wrong_labels(student: nn.Module, batch: Any) -> Tensor:
            return wrong_label_loss(inputs.objective, student, batch)

        forget = EpochConfig.epochs(inputs.forget_data, wrong_labels, count=self.epochs, name="relabelled epoch")
        retain = EpochConfig.epochs(inputs.retain_data, inputs.mean_loss, count=self.epochs, name="retain epoch")
        return chain.from_iterable(zip(forget, retain, strict=True))


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [RandomLabel]
