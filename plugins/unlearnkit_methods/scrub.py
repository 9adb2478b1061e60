"""SCRUB: obey the original model on what is kept, and disobey it on what is to be forgotten."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    EpochConfig,
    Need,
    OptimizerConfig,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    class_logits,
    divergence,
    fine_tune,
    hookimpl,
    option,
    teacher_of,
)


@final
@attrs.frozen(kw_only=True)
class Scrub(Unlearner):
    """Minimise α·d(x_r) + γ·ℓ(x_r, y_r) over D_r and maximise d(x_f) over D_f, d(x) = KL(p_o(x) ‖ p_θ(x)).

    p_o are the class probabilities of the model as it was, a frozen copy in eval mode, p_θ those of the model being
    edited; KL goes from the first to the second, over softmax(logits / T), times T² (`unlearnkit.divergence`). In each
    of the first ``max_epochs`` epochs a pass over D_f that climbs comes before the pass over D_r that descends; the
    epochs after them only descend. One optimiser serves both.

    By default in train mode, as in the authors' code; ``mode = "eval"`` leaves BatchNorm's buffers as they are. The
    authors' smoothing of weights and decay of the learning rate are left out.

    Source: Kurmanji et al. 2023 (Towards Unbounded Machine Unlearning), the objective and the algorithm SCRUB; T = 4,
    γ = 0.99 and two epochs of climbing from the authors' code, whose α is 0.001 to 0.5.

    Example:
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> Scrub().unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain)).changed
        4
    """

    name: ClassVar[str] = "scrub"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    alpha: float = option(0.5, symbol="α", at_least=0.0, doc="weight of the divergence on the retain set")
    gamma: float = option(0.99, symbol="γ", at_least=0.0, doc="weight of the loss on the retain set")
    temperature: float = option(4.0, symbol="T", above=0.0, doc="softens the class probabilities")
    epochs: int = option(5, at_least=1, doc="passes over the retain set")
    max_epochs: int = option(2, at_least=0, doc="passes over the forget set, one before each of the first epochs")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Climb and descend in turn; see `unlearnkit.Unlearner.apply`."""
        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        passes = self._passes(teacher_of(model), inputs)
        fine_tune(model, passes, optimizer=optimizer, inputs=inputs, training=self.mode == "train")

    def _passes(self, teacher: nn.Module, inputs: UnlearningInputs) -> Iterator[EpochConfig]:
        def distance(student: nn.Module, batch: Any) -> Tensor:
            with torch.no_grad():
                taught = class_logits(inputs.objective, teacher, batch)
            learnt = class_logits(inputs.objective, student, batch)
            return divergence(taught, learnt, temperature=self.temperature).mean()

        def disobey(student: nn.Module, batch: Any) -> Tensor:
            return -distance(student, batch)

        def obey(student: nn.Module, batch: Any) -> Tensor:
            loss = inputs.objective.losses(student, batch).mean()
            return self.alpha * distance(student, batch) + self.gamma * loss

        for epoch in range(1, self.epochs + 1):
            if epoch <= self.max_epochs:
                yield EpochConfig(batches=inputs.forget_data or (), loss=disobey, name=f"max epoch {epoch}")
            yield EpochConfig(batches=inputs.retain_data or (), loss=obey, name=f"min epoch {epoch} of {self.epochs}")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [Scrub]
