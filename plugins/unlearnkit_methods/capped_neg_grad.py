"""Capped NegGrad+: learn the retain set, and raise the loss of the forget set up to a target."""

import math
from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, class_logits, teacher_of


@final
@attrs.frozen(kw_only=True)
class CappedNegGrad(TrainingUnlearner):
    """Minimise ℓ(θ; D_r) + c·max(0, t − ℓ(θ; D_f)), ℓ the mean loss of a batch and t the target.

    Each step takes one batch of the retain set and one of the forget set, which starts again when it is used up; an
    epoch is one pass over the retain set. A batch whose loss has reached t gets no push any more, so more epochs do not
    destroy the model, as they do with `neg-grad-plus`. In train mode both batches go through BatchNorm together: one of
    a single class would be normalised by its own statistics, and its loss be far above t whatever the model knows.

    Choose t as the loss of a model that never saw the forget set: for random samples the original's loss on unseen
    samples, for a class or a part of one the loss on the forget set of a model that was trained on the retain set for
    some epochs. Left out it is ln C, the loss of guessing one of C classes, which is too large for random samples; of a
    text, ln C for each token.

    Good for: whole classes, sub-classes and random samples. It changes the features too, on CIFAR-10 with 4 epochs of
    two batches a step, where retraining takes 18; `unlearnkit recommend` measures the target loss.

    Source: NegGrad+ of Kurmanji et al. 2023 (Towards Unbounded Machine Unlearning) with a hinge in its second term; we
    know of no paper that has this form.

    Examples:
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> method = CappedNegGrad(target=2.0, c=5.0, epochs=50, learning_rate=0.05)
        >>> _ = method.unlearn(model, UnlearningInputs(forget_data=forget, retain_data=retain))
        >>> bool(1.5 < UnlearningInputs().objective.losses(model, forget[0]) < 3)
        True
    """

    name: ClassVar[str] = "capped-neg-grad"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA})
    batches_per_step: ClassVar[int] = 2
    traits: ClassVar[UnlearnerTraits] = attrs.evolve(
        TrainingUnlearner.traits, forgets={"full-class", "sub-class", "random", "corrupted"}
    )

    target: float | None = option(
        None, symbol="t", at_least=0.0, doc="loss of the forget set to reach, in nats", signal="forget-loss"
    )
    c: float = option(0.05, symbol="c", at_least=0.0, doc="weight of what the forget loss lacks", search=(0.01, 0.2))

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:  # noqa: ARG002
        target = self.target

        def loss(student: nn.Module, batches: Any) -> Tensor:
            nonlocal target
            if target is None:
                with torch.no_grad():
                    # Of a copy: in train mode, a pass changes BatchNorm and draws dropout.
                    classes = class_logits(inputs.objective, teacher_of(student), batches[0]).shape[1]
                    target = math.log(classes) * float(inputs.objective.predictions(batches[1]).double().mean())
            retain, forget = inputs.mean_losses(student, batches)
            return retain + self.c * (target - forget).clamp(min=0)

        return self.paired_epochs(inputs, loss)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [CappedNegGrad]
