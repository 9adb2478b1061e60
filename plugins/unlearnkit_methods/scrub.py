"""SCRUB: stay near the original model on the retain set, and move away from it on the forget set."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, distillation_loss, teacher_of


@final
@attrs.frozen(kw_only=True)
class Scrub(TrainingUnlearner):
    """Minimise α·d(x_r) + γ·ℓ(x_r, y_r) over D_r and maximise d(x_f) over D_f, d(x) = KL(p_o(x) ‖ p_θ(x)).

    p_o are the class probabilities of the original model, a frozen copy in eval mode, p_θ those of the model being
    edited; d is the `divergence`. In each of the first ``max_epochs`` epochs, a pass over D_f that maximises comes
    before the pass over D_r that minimises; later epochs only minimise. One optimiser serves both.

    Train mode by default, as in the authors' code, whose smoothing of weights and decay of the learning rate are left
    out.

    Good for: whole classes, with a teacher and both sets.

    Source: Kurmanji et al. 2023 (Towards Unbounded Machine Unlearning), the objective and the algorithm SCRUB; T = 4,
    γ = 0.99 and two maximising epochs from the authors' code, whose α is 0.001 to 0.5.

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> Scrub().unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain)).changed
        4
    """

    name: ClassVar[str] = "scrub"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})

    alpha: float = option(
        0.5, symbol="α", at_least=0.0, doc="weight of the divergence on the retain set", search=(1e-3, 1.0)
    )
    gamma: float = option(0.99, symbol="γ", at_least=0.0, doc="weight of the loss on the retain set")
    temperature: float = option(4.0, symbol="T", above=0.0, doc="softens the class probabilities")
    max_epochs: int = option(
        2, at_least=0, doc="passes over the forget set, one before each of the first epochs", search=(1, 5)
    )
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size", search=(1e-4, 3e-2))

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterator[EpochConfig]:
        teacher = teacher_of(model)

        def distance(student: nn.Module, batch: Any) -> Tensor:
            return distillation_loss(teacher, student, batch, objective=inputs.objective, temperature=self.temperature)

        def ascend(student: nn.Module, batch: Any) -> Tensor:
            return -distance(student, batch)

        def descend(student: nn.Module, batch: Any) -> Tensor:
            return self.gamma * inputs.mean_loss(student, batch) + self.alpha * distance(student, batch)

        for epoch in range(1, self.epochs + 1):
            if epoch <= self.max_epochs:
                yield EpochConfig(batches=inputs.forget_data, loss=ascend, name=f"max epoch {epoch}")
            yield EpochConfig(batches=inputs.retain_data, loss=descend, name=f"min epoch {epoch} of {self.epochs}")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Scrub]
