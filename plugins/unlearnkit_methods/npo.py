"""NPO: make the forget set less likely than the original model finds it, with a push that fades."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, teacher_of


@final
@attrs.frozen(kw_only=True)
class NegativePreference(TrainingUnlearner):
    """Minimise (2/β)·mean log(1 + (π_θ/π_ref)^β) over D_f + λ·ℓ(θ; D_r), π the likelihood of a sample or a text.

    π_ref is that of the original model, a frozen copy in eval mode: with the losses −log π of the objective, the first
    term is (2/β)·softplus(β·(ℓ_ref − ℓ)). At the start its gradient is that of gradient ascent; it fades as π_θ falls
    below π_ref, and for β → 0 never. ℓ(θ; D_r) is the mean loss of a batch. Each step takes one batch of the retain set
    and one of the forget set, which starts again when it is used up. Eval mode by default: π_θ and π_ref then differ by
    the weights alone.

    Good for: texts, and whole classes of samples; `simnpo` needs no copy of the model.

    Source: Zhang et al. 2024 (Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning),
    the NPO loss, with β = 0.1, and the retain loss of NPO+RT; their code averages ℓ(θ; D_r) over tokens.

    Examples:
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> before = UnlearningInputs().objective.losses(model, forget[0])
        >>> _ = NegativePreference(epochs=20).unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain))
        >>> bool(UnlearningInputs().objective.losses(model, forget[0]) > before)
        True
    """

    name: ClassVar[str] = "npo"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    batches_per_step: ClassVar[int] = 2

    beta: float = option(0.1, symbol="β", above=0.0, doc="how soon the push fades", search=(0.01, 1.0))
    lam: float = option(1.0, symbol="λ", at_least=0.0, doc="weight of the retain loss", search=(0.1, 10.0))
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size", search=(1e-5, 1e-2))
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        original = teacher_of(model)

        def loss(student: nn.Module, batches: Any) -> Tensor:
            retain, forget = batches
            with torch.no_grad():
                reference = inputs.objective.losses(original, forget)
            less_likely = self.beta * (reference - inputs.objective.losses(student, forget))
            pushed = 2 / self.beta * nn.functional.softplus(less_likely).mean()
            return pushed + self.lam * inputs.mean_loss(student, retain)

        return self.paired_epochs(inputs, loss)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [NegativePreference]
