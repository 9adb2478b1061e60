"""NegGrad+: descend on the retain set and ascend on the forget set, in one step."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig


@final
@attrs.frozen(kw_only=True)
class NegGradPlus(TrainingUnlearner):
    """Minimise β·ℓ(θ; D_r) − (1 − β)·ℓ(θ; D_f), ℓ the mean loss of a batch.

    Each step takes one batch of the retain set and one of the forget set, which starts again when it is used up; an
    epoch is one pass over the retain set. β = 1 is fine-tuning, β = 0 gradient ascent. Nothing bounds the second
    term: a small β, or many epochs, destroys the model.

    As in the authors' code, train mode is the default and the two batches go through the model one after the other.
    BatchNorm then normalises a forget batch by its own statistics and takes them into the running ones, which does much
    of the forgetting of a class: on the digits, with both batches in one pass, the defaults forget next to nothing.

    Good for: whole classes; without a cap it can go too far, or nowhere (`capped-neg-grad` has one).

    Source: Kurmanji et al. 2023 (Towards Unbounded Machine Unlearning), the baseline NegGrad+, with β = 0.95 on small
    and 0.9999 on large data; the authors' code, ``train_negrad``, calls β α.

    Examples:
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
    batches_per_step: ClassVar[int] = 2

    beta: float = option(
        0.99, symbol="β", at_least=0.0, at_most=1.0, doc="weight of the retain loss", search=(0.9, 0.9999)
    )
    optimizer: str = option("sgd", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(1e-2, symbol="η", above=0.0, doc="step size", search=(1e-4, 3e-2))

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        def loss(student: nn.Module, batches: Any) -> Tensor:
            retain, forget = (inputs.mean_loss(student, batch) for batch in batches)
            return self.beta * retain - (1 - self.beta) * forget

        return self.paired_epochs(inputs, loss)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [NegGradPlus]
