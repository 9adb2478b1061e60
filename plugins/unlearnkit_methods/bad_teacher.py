"""Bad teaching: imitate the original model on the retain set, and an untrained model on the forget set."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import Tensor, nn

from unlearnkit import Need, TrainingUnlearner, Unlearner, UnlearningInputs, hookimpl, option
from unlearnkit.data import Interleaved
from unlearnkit.unlearning import EpochConfig, distillation_loss, fresh_model, teacher_of


@final
@attrs.frozen(kw_only=True)
class BadTeacher(TrainingUnlearner):
    """Minimise (1 − l_u)·KL(T_s(x) ‖ S(x)) + l_u·KL(T_d(x) ‖ S(x)), with l_u = 1 for a sample to forget, else 0.

    S is the model being edited, T_s (competent) a frozen copy of the original, T_d (incompetent) an untrained model
    from ``inputs.model_factory``. KL is the mean `divergence` of a batch; the authors' code averages over classes too,
    at T = 1, so that its learning rates are larger by the number of classes. Labels are not used. An epoch takes every
    batch of both sets once, evenly mixed.

    Eval mode by default, teachers always: a batch here is of one set, and one of a single class would be normalised by
    its own statistics. The authors shuffle both sets into common batches, and keep the mode of the model.

    Good for: whole classes, without labels.

    Source: Chundawat et al. 2023 (Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks Using an
    Incompetent Teacher), the section on the method, equation of L(x, l_u).

    Examples:
        >>> import torch
        >>> model = nn.Linear(1, 2)
        >>> forget, retain = [(torch.tensor([[1.0]]), torch.tensor([0]))], [(torch.tensor([[-1.0]]), torch.tensor([1]))]
        >>> inputs = UnlearningInputs(forget_data=forget, retain_data=retain, model_factory=lambda: nn.Linear(1, 2))
        >>> BadTeacher().unlearn(model, inputs).changed
        4
    """

    name: ClassVar[str] = "bad-teacher"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FORGET_DATA, Need.RETAIN_DATA, Need.MODEL_FACTORY})

    temperature: float = option(1.0, symbol="T", above=0.0, doc="softens the class probabilities")
    mode: str = option("eval", choices=("train", "eval"), doc="eval: no dropout, BatchNorm left as it is")

    def passes(self, model: nn.Module, inputs: UnlearningInputs) -> Iterable[EpochConfig]:
        teachers = {False: teacher_of(model), True: teacher_of(fresh_model(model, inputs))}

        def loss(student: nn.Module, item: Any) -> Tensor:
            is_forget, batch = item
            teacher = teachers[is_forget]
            return distillation_loss(teacher, student, batch, objective=inputs.objective, temperature=self.temperature)

        assert inputs.retain_data is not None, "RETAIN_DATA is among the needs"
        assert inputs.forget_data is not None, "FORGET_DATA is among the needs"
        both = Interleaved(retain=inputs.retain_data, forget=inputs.forget_data)
        return EpochConfig.epochs(both, loss, count=self.epochs)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [BadTeacher]
