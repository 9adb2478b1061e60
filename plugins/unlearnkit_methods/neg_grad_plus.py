"""NegGrad+: descend on what is kept and climb on what is to be forgotten, in one step."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import (
    EpochConfig,
    Need,
    OptimizerConfig,
    Paired,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    fine_tune,
    hookimpl,
    option,
)


@final
@attrs.frozen(kw_only=True)
class NegGradPlus(Unlearner):
    """Minimise β·ℓ(θ; D_r) − (1 − β)·ℓ(θ; D_f), ℓ the mean loss of a batch.

    Each step takes one batch of the retain set and one of the forget set, which starts again when it is used up; an
    epoch is one pass over the retain set. β = 1 is fine-tuning, β = 0 gradient ascent. Nothing bounds the second
    term: a small β, or many epochs, destroys the model.

    By default in train mode, as in the authors' code; ``mode = "eval"`` leaves BatchNorm's buffers as they are.

    Source: Kurmanji et al. 2023 (Towards Unbounded Machine Unlearning), the baseline NegGrad+, with β = 0.95 on small
    and 0.9999 on large data; the authors' code, ``train_negrad``, calls β α.

    Example:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> before = UnlearningInputs().objective.losses(model, forget[0])
        >>> _ = NegGradPlus(beta=0.5).unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain))
        >>> bool(UnlearningInputs().objective.losses(model, forget[0]) > before)
        True
    """

    name: ClassVar[str] = "neg-grad-plus"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    beta: float = option(0.99, symbol="β", at_least=0.0, at_most=1.0, doc="share of the retain loss")
    epochs: int = option(5, at_least=1, doc="passes over the retain set")
    optimizer: str = option("sgd", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(1e-2, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("train", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Descend and climb; see `unlearnkit.Unlearner.apply`."""

        def loss(student: nn.Module, batches: Any) -> Tensor:
            kept, forgotten = (inputs.objective.losses(student, batch).mean() for batch in batches)
            return self.beta * kept - (1 - self.beta) * forgotten

        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        pairs = Paired(retain=inputs.retain_data or (), forget=inputs.forget_data or ())
        passes = EpochConfig.epochs(pairs, loss, count=self.epochs)
        fine_tune(model, passes, optimizer=optimizer, inputs=inputs, training=self.mode == "train")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [NegGradPlus]
