"""A sequence of methods: dampen, then repair by an epoch on the retain set, say."""

from collections.abc import Iterable
from typing import Any, ClassVar, final

import attrs
from torch import nn

from unlearnkit import ConfigurationError, Need, Unlearner, UnlearnerTraits, UnlearningInputs, hookimpl, option

_IMPORTANCES = frozenset({Need.FORGET_IMPORTANCE, Need.REFERENCE_IMPORTANCE})


@final
@attrs.frozen(kw_only=True)
class Sequence(Unlearner):
    """θ' = m_k(… m_2(m_1(θ))): each method edits what the one before it left; all of them, or none.

    It needs what its steps need. Importances are of the model before the first step, so only the first step may use
    them: taken again after an edit they select a third of all weights or more and wreck the model, and the old ones
    are of another model.

    Good for: an edit and its repair as one, such as `ssd`, then `finetune`.

    Source: this project; to impair and then repair is the scheme of Tarun et al. 2023 (Fast Yet Effective Machine
    Unlearning).

    Examples:
        >>> import torch
        >>> from unlearnkit import Importance
        >>> from unlearnkit_methods.finetune import FineTune
        >>> from unlearnkit_methods.prune import Prune
        >>> model, retain = nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> forget = Importance(totals={"weight": torch.eye(2), "bias": torch.zeros(2)}, count=1)
        >>> prune_and_repair = Sequence(steps=(Prune(), FineTune(epochs=1)))
        >>> report = prune_and_repair.unlearn(model, UnlearningInputs(forget=forget, retain_data=retain))
        >>> [(step.method, step.changed) for step in report.steps]
        [('prune', 2), ('finetune', 6)]
    """

    name: ClassVar[str] = "sequence"
    needs: ClassVar[frozenset[Need]] = frozenset()

    steps: tuple[Unlearner, ...] = option(doc="the methods, in their order", parts=True)

    @steps.validator
    def _check(self, _: "attrs.Attribute[Any]", steps: tuple[Any, ...]) -> None:
        where = "Sequence.steps: expected"
        if not steps:
            raise ConfigurationError(f"{where} at least one method, saw none: list them, as [[method.steps]] in TOML")
        for number, step in enumerate(steps, start=1):
            if not isinstance(step, Unlearner):
                raise ConfigurationError(f"{where} objects of methods, saw {step!r} as step {number}")
            if isinstance(step, Sequence):
                raise ConfigurationError(
                    f"{where} no sequence within a sequence, saw one as step {number}: list its steps"
                )
            if number > 1 and step.requires() & _IMPORTANCES:
                raise ConfigurationError(
                    f"{where} no importances after the first step, saw {step.name!r}, which needs them, as step "
                    f"{number}: they are of the model before the first step; put it first"
                )

    def requires(self) -> frozenset[Need]:
        """Return what any step needs; see `Unlearner.requires`."""
        return frozenset().union(*(step.requires() for step in self.steps))

    def promises(self) -> UnlearnerTraits:
        """Promise what all steps promise; see `Unlearner.promises`."""
        each = [step.promises() for step in self.steps]
        return UnlearnerTraits(
            deterministic=all(traits.deterministic for traits in each),
            edits_buffers=any(traits.edits_buffers for traits in each),
        )

    def apply(self, model: nn.Module, inputs: UnlearningInputs) -> None:
        for step in self.steps:
            inputs.edit_by(step, model)


@hookimpl
def unlearnkit_register_unlearners() -> Iterable[type[Unlearner]]:
    return [Sequence]
