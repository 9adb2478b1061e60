"""One edit after another, each measured on validation data and undone; and the one that stays."""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Never, Self, final

import attrs
from torch import nn

from unlearnkit.evaluation.outputs import InapplicableError, outputs_of
from unlearnkit.evaluation.tuning.batch_norm import reestimate_batch_norm
from unlearnkit.evaluation.tuning.candidate import Candidate, Setting
from unlearnkit.evaluation.tuning.curve import OperatingCurve, with_options
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import buffers, digest
from unlearnkit.unlearning.elementwise import ElementwiseUnlearner
from unlearnkit.unlearning.report import Report
from unlearnkit.unlearning.unlearner import UnlearningInputs
from unlearnkit.utils.errors import BudgetError, ConfigurationError, NonFiniteError, UnlearnKitWarning


@final
@attrs.frozen(kw_only=True, eq=False)
class Validation:
    """Data to choose by: carved from the training set, never the test set.

    Attributes:
        retain: Batches of retained samples, iterable more than once.
        forget: Batches of samples to forget.
    """

    retain: Iterable[Any]
    forget: Iterable[Any]


class _RollBackError(Exception):
    """Raised inside an edit that was measured, so that it is undone bit by bit."""


@final
@attrs.frozen(kw_only=True)
class Scores:
    """Accuracy, and mean probability of the label, on retained and on forget data; each 0 … 1."""

    retain: float
    forget: float
    retain_probability: float
    forget_probability: float

    @classmethod
    def of(cls, model: nn.Module, validation: Validation, objective: Objective | None) -> Self:
        """Measure a model."""
        try:
            retain, forget = (
                outputs_of(model, data, objective=objective) for data in (validation.retain, validation.forget)
            )
        except InapplicableError as reason:
            raise ConfigurationError(f"Tuner.tune: cannot judge by the validation data: {reason}") from reason
        return cls(
            retain=retain.accuracy,
            forget=forget.accuracy,
            retain_probability=retain.certainty,
            forget_probability=forget.certainty,
        )


@final
@attrs.frozen(kw_only=True, eq=False)
class Trials:
    """What all candidates of a search share."""

    unlearner: ElementwiseUnlearner
    model: nn.Module
    curve: OperatingCurve
    inputs: UnlearningInputs
    validation: Validation
    target: float
    budget: float
    original: Scores

    def measure(self, setting: Setting) -> Candidate:
        """Make an edit, score it, undo it."""
        seen: dict[str, Any] = {}

        def accept(report: Report) -> Never:
            self._finish(setting)
            seen["scores"] = Scores.of(self.model, self.validation, self.inputs.objective)
            seen["changed"] = report.fraction
            raise _RollBackError

        method = self._method(setting)
        options = self._options(method)
        try:
            with warnings.catch_warnings(), suppress(_RollBackError):
                warnings.simplefilter("ignore", UnlearnKitWarning)  # said once, when the chosen edit is made
                method.unlearn(self.model, self.inputs, accept=accept)
        except (BudgetError, NonFiniteError) as error:
            return Candidate(setting=setting, options=options, problem=str(error))
        return self._candidate(setting, options, seen["scores"], changed=seen["changed"])

    def commit(self, candidate: Candidate) -> Report:
        """Make the chosen edit for good."""
        before = {name: b.detach().clone() for name, b in buffers(self.model).items()}

        def accept(report: Report) -> Report:
            self._finish(candidate.setting)
            changed = [n for n, b in buffers(self.model).items() if not bool((b == before[n]).all())]
            return attrs.evolve(report, buffers_changed=tuple(changed), model_after=digest(self.model))

        return self._method(candidate.setting).unlearn(self.model, self.inputs, accept=accept)

    def _method(self, setting: Setting) -> ElementwiseUnlearner:
        value = self.curve.value_for(setting.fraction)
        options = {self.curve.option: value}
        if setting.strength is not None:
            options[self.curve.strength] = setting.strength * value
        return with_options(self.unlearner, **options)

    def _finish(self, setting: Setting) -> None:
        if setting.reestimate:
            assert self.inputs.retain_data is not None, "no such setting is made without retain data"
            reestimate_batch_norm(self.model, self.inputs.retain_data, objective=self.inputs.objective)

    def _options(self, method: ElementwiseUnlearner) -> dict[str, Any]:
        names = (self.curve.option, self.curve.strength)
        return {name: getattr(method, name) for name in names if name}

    def _candidate(self, setting: Setting, options: dict[str, Any], seen: Scores, *, changed: float) -> Candidate:
        distance, damage = abs(seen.forget - self.target), self.original.retain - seen.retain
        return Candidate(
            setting=setting,
            options=options,
            selected=self.curve.fraction(options[self.curve.option]),
            changed=changed,
            **attrs.asdict(seen),
            distance=distance,
            damage=damage,
            score=(1 - distance) * (1 - max(damage, 0.0)),
            margin=(1 - abs(seen.forget_probability - self.target)) * seen.retain_probability,
            # Accuracies are shares of samples: a budget of exactly so many is kept by exactly so many.
            feasible=damage <= self.budget + 1e-12,
        )
