"""SimNPO: make the forget set unlikely, counted for each token, without a reference model."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig


@final
@attrs.frozen(kw_only=True)
class SimpleNegativePreference(TrainingUnlearner):
    """Minimise −(2/β)·mean log σ(−(β/|y|)·log π_θ − γ) over D_f + λ·mean ℓ/|y| over D_r, |y| the predicted tokens.

    With the losses ℓ = −log π_θ of the objective the first term is (2/β)·softplus(γ − β·ℓ/|y|): its gradient fades
    where a token of the text has cost more than about γ/β nats. |y| is 1 for a classifier. Each step takes one batch of
    the retain set and one of the forget set, which starts again when it is used up. Eval mode by default.

    Good for: texts of different lengths, and whole classes of samples.

    Source: Fan et al. 2024 (Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning), the
    SimNPO loss, with β = 2.5 and γ = 0; their retain loss is a mean over tokens too.

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> inputs = UnlearningInputs(forget_data=forget, retain_data=retain)
        >>> before = inputs.objective.losses(model, forget[0])
        >>> _ = SimpleNegativePreference(epochs=20).unlearn(model, inputs)
        >>> bool(inputs.objective.losses(model, forget[0]) > before)
        True
    """

    name: ClassVar[str] = "simnpo"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    batches_per_step: ClassVar[int] = 2

    beta: float = option(2.5, symbol="β", above=0.0, doc="how soon the push fades", search=(0.5, 10.0))
    gamma: float = option(0.0, symbol="γ", at_least=0.0, doc="margin: the push lasts longer", search=(0.0, 5.0))
    lam: float = option(1.0, symbol="λ", at_least=0.0, doc="weight of the retain loss", search=(0.1, 10.0))
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size", search=(1e-5, 1e-2))
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def per_token(student: nn.Module, batch: Any) -> Tensor:
            return inputs.objective.losses(student, batch) / inputs.objective.predictions(batch).clamp(min=1)

        def loss(student: nn.Module, batches: Any) -> Tensor:
            retain, forget = (per_token(student, batch) for batch in batches)
            pushed = 2 / self.beta * nn.functional.softplus(self.gamma - self.beta * forget).mean()
            return pushed + self.lam * retain.mean()

        return self.paired_epochs(inputs, loss)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [SimpleNegativePreference]
