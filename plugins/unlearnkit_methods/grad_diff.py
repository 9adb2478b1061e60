"""GradDiff: ascend on the forget set, with the retain loss added."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig


@final
@attrs.frozen(kw_only=True)
class GradientDifference(TrainingUnlearner):
    """Minimise −ℓ(θ; D_f) + λ·ℓ(θ; D_r), ℓ the mean loss of a batch.

    Each step takes one batch of the retain set and one of the forget set, which starts again when it is used up.
    Nothing bounds the first term: a large step size, or many epochs, destroys the model. The loss is that of
    `neg-grad-plus` times 1 + λ, with β = λ/(1 + λ). Eval mode by default.

    Good for: a baseline for texts; `npo` and `simnpo` push less where a text is forgotten already.

    Source: Liu et al. 2022 (Continual Learning and Private Unlearning), gradient difference; Maini et al. 2024 (TOFU: A
    Task of Fictitious Unlearning for LLMs), with λ = 1.

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> inputs = UnlearningInputs(forget_data=forget, retain_data=retain)
        >>> before = inputs.objective.losses(model, forget[0])
        >>> _ = GradientDifference().unlearn(model, inputs)
        >>> bool(inputs.objective.losses(model, forget[0]) > before)
        True
    """

    name: ClassVar[str] = "grad-diff"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    batches_per_step: ClassVar[int] = 2

    lam: float = option(1.0, symbol="λ", at_least=0.0, doc="weight of the retain loss", search=(0.1, 10.0))
    learning_rate: float = option(3e-5, symbol="η", above=0.0, doc="step size", search=(1e-6, 1e-3))
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def loss(student: nn.Module, batches: Any) -> Tensor:
            retain, forget = inputs.mean_losses(student, batches)
            return self.lam * retain - forget

        return self.paired_epochs(inputs, loss)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [GradientDifference]
