"""Retraining: throw the model away and train a fresh one without what is to be forgotten."""

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
    copy_state,
    fine_tune,
    fresh_model,
    hookimpl,
    option,
)


@final
@attrs.frozen(kw_only=True)
class Retrain(Unlearner):
    """θ' = A(D_r): a fresh model from ``UnlearningInputs.model_factory``, trained on the retain set alone.

    Its weights and buffers are then copied into the model, none of whose trainable weights or buffers has any influence
    on them; frozen parameters stay as they are, and the fresh model is trained around them. This is what every other
    method tries to come near to: exact unlearning, at its full price. A fair comparison needs the epochs, the
    optimiser and the learning rate of the original training, which are not looked up anywhere: set them.

    In train mode: dropout is on, BatchNorm starts afresh.

    Source: the definition of exact unlearning, as in Bourtoule et al. 2021 (Machine Unlearning).

    Example:
        >>> import torch
        >>> def factory():
        ...     return nn.Linear(2, 2)
        >>> retain = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> one, other = factory(), factory()
        >>> for model in (one, other):
        ...     _ = Retrain(epochs=2).unlearn(model, UnlearningInputs(retain_data=retain, model_factory=factory))
        >>> torch.equal(one.weight, other.weight)
        True
    """

    name: ClassVar[str] = "retrain"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.RETAIN_DATA, Need.MODEL_FACTORY})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    epochs: int = option(20, at_least=1, doc="passes over the retain set")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Train a fresh model and copy it; see `unlearnkit.Unlearner.apply`."""
        fresh = fresh_model(model, inputs)

        def loss(student: nn.Module, batch: Any) -> Tensor:
            return inputs.objective.losses(student, batch).mean()

        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        passes = EpochConfig.epochs(inputs.retain_data, loss, count=self.epochs)
        fine_tune(fresh, passes, optimizer=optimizer, inputs=inputs, training=True)
        copy_state(fresh, model)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [Retrain]
