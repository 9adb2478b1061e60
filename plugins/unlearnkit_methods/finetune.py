"""Fine-tuning: go on training on what is kept, and hope that the rest fades."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import (
    EpochConfig,
    Need,
    OptimizerConfig,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    fine_tune,
    hookimpl,
    option,
)


@final
@attrs.frozen(kw_only=True)
class FineTune(Unlearner):
    """θ ← θ − η·∇ℓ(θ; D_r): training goes on, on the retain set alone.

    The forget set is never looked at; what it taught fades only as far as the retain set contradicts it (catastrophic
    forgetting). The baseline that every method has to beat.

    By default in train mode, as the model was trained: dropout is on, and BatchNorm uses and updates the statistics
    of the batches. ``mode = "eval"`` leaves the buffers as they are.

    Source: Golatkar, Achille and Soatto 2020 (Eternal Sunshine of the Spotless Net), the baseline
    "fine-tune"; Warnecke et al. 2023 (Machine Unlearning of Features and Labels), fine-tuning.

    Example:
        >>> import torch
        >>> model, retain = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> FineTune(epochs=1).unlearn(model, UnlearningInputs(retain_data=retain)).changed
        6
    """

    name: ClassVar[str] = "finetune"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    epochs: int = option(5, at_least=1, doc="passes over the retain set")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Train on the retain set; see `unlearnkit.Unlearner.apply`."""

        def loss(student: nn.Module, batch: Any) -> Tensor:
            return inputs.objective.losses(student, batch).mean()

        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        passes = EpochConfig.epochs(inputs.retain_data, loss, count=self.epochs)
        fine_tune(model, passes, optimizer=optimizer, inputs=inputs, training=self.mode == "train")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [FineTune]
