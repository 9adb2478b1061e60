"""Bad teaching: imitate the original on what is kept, and an untrained model on what is to be forgotten."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit import (
    EpochConfig,
    Interleaved,
    Need,
    OptimizerConfig,
    Unlearner,
    UnlearnerTraits,
    UnlearningInputs,
    class_logits,
    divergence,
    fine_tune,
    fresh_model,
    hookimpl,
    option,
    teacher_of,
)


@final
@attrs.frozen(kw_only=True)
class BadTeacher(Unlearner):
    """Minimise (1 − l_u)·KL(T_s(x) ‖ S(x)) + l_u·KL(T_d(x) ‖ S(x)), with l_u = 1 for a sample to forget, else 0.

    S is the model being edited, T_s (competent) a frozen copy of it as it was, T_d (incompetent) an untrained model
    from ``inputs.model_factory``. KL goes from the teacher to the student, over softmax(logits / T); it is summed
    over classes, averaged over the batch and multiplied by T² (`unlearnkit.divergence`), while the authors' code
    averages over batch × classes at T = 1: its learning rates are larger by the number of classes. Labels are not
    used. An epoch takes every batch of both sets once, evenly mixed.

    By default in eval mode, teachers always: batches here are of one set, and those of one class would be normalised by
    statistics of their own. The authors shuffle both sets into common batches, in the mode that the model is in.

    Source: Chundawat et al. 2023 (Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an
    Incompetent Teacher), the section on the method, equation of L(x, l_u).

    Example:
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> inputs = UnlearningInputs(forget_data=forget, retain_data=retain, model_factory=lambda: nn.Linear(1, 2))
        >>> BadTeacher().unlearn(model, inputs).changed
        4
    """

    name: ClassVar[str] = "bad-teacher"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA, Need.MODEL_FACTORY})
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(edits_buffers=True)

    temperature: float = option(1.0, symbol="T", above=0.0, doc="softens the class probabilities")
    epochs: int = option(5, at_least=1, doc="passes over both sets")
    optimizer: str = option("adam", choices=("adam", "adamw", "sgd"), doc="which optimiser")
    learning_rate: float = option(3e-3, symbol="η", above=0.0, doc="step size")
    momentum: float = option(0.9, at_least=0.0, at_most=1.0, doc="of sgd")
    weight_decay: float = option(0.0, at_least=0.0, doc="L2 penalty; decoupled for adamw")
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def promises(self) -> UnlearnerTraits:
        """Promise to leave buffers alone in eval mode."""
        return attrs.evolve(self.traits, edits_buffers=self.mode == "train")

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        """Learn from two teachers; see `unlearnkit.Unlearner.apply`."""
        teachers = {False: teacher_of(model), True: teacher_of(fresh_model(model, inputs))}

        def loss(student: nn.Module, item: Any) -> Tensor:
            forgotten, batch = item
            with torch.no_grad():
                taught = class_logits(inputs.objective, teachers[forgotten], batch)
            learnt = class_logits(inputs.objective, student, batch)
            return divergence(taught, learnt, temperature=self.temperature).mean()

        optimizer = OptimizerConfig(
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        both = Interleaved(retain=inputs.retain_data or (), forget=inputs.forget_data or ())
        passes = EpochConfig.epochs(both, loss, count=self.epochs)
        fine_tune(model, passes, optimizer=optimizer, inputs=inputs, training=self.mode == "train")


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    """Offer the method of this package."""
    return [BadTeacher]
