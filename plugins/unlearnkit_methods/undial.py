"""UNDIAL: learn the original model's own outputs with the true class or token made less likely."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.unlearning import EpochConfig, class_labels, class_logits, divergence, teacher_of


@final
@attrs.frozen(kw_only=True)
class Undial(TrainingUnlearner):
    """Minimise KL(softmax(z − γ·1_y) ‖ p_θ(x)) over D_f, z the original model's logits of x, y its label or next token.

    The target is fixed, so the loss is bounded and more epochs do no further harm: the odds of y against any other
    class fall by e^γ, and those of the others among themselves stay. A text's divergence is the sum over its predicted
    tokens, a batch's loss the mean over its texts. The retain set is not used. Eval mode by default.

    Good for: texts and samples when there is no retain set.

    Source: Dong et al. 2024 (UNDIAL: Self-Distillation with Adjusted Logits for Robust Unlearning in Large Language
    Models), the adjusted logits and their loss, with γ of 3, 10 or 30; the cross entropy there differs from the
    divergence by a constant.

    Examples:
        >>> model, x, y = nn.Linear(1, 3), torch.tensor([[1.0]]), torch.tensor([0])
        >>> odds = (model(x)[0, 0] - model(x)[0, 1]).item()
        >>> _ = Undial(gamma=2.0, epochs=500, learning_rate=0.05).unlearn(
        ...     model, UnlearningInputs(forget_data=[(x, y)])
        ... )
        >>> round(odds - (model(x)[0, 0] - model(x)[0, 1]).item(), 2)
        2.0
    """

    name: ClassVar[str] = "undial"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA})

    gamma: float = option(10.0, symbol="γ", at_least=0.0, doc="what the logit of the label loses", search=(1.0, 30.0))
    learning_rate: float = option(1e-3, symbol="η", above=0.0, doc="step size", search=(1e-5, 1e-2))
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        original = teacher_of(model)

        def loss(student: nn.Module, batch: Any) -> Tensor:
            labels = class_labels(inputs.objective, batch).unsqueeze(1)
            with torch.no_grad():
                target = class_logits(inputs.objective, original, batch)
                lowered = -self.gamma * (labels >= 0).to(target.dtype)
                target = target.scatter_add(1, labels.clamp(min=0), lowered)
            return divergence(target, class_logits(inputs.objective, student, batch)).mean()

        return EpochConfig.epochs(inputs.forget_data, loss, count=self.epochs)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Undial]
