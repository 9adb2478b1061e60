"""The contract of every number that says how well a model forgot."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, final

import attrs
from torch import nn

from unlearnkit.models.objective import CrossEntropy, Objective
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.utils.errors import MismatchError, raise_all
from unlearnkit.utils.options import by_fields, read_only


@final
@attrs.frozen(kw_only=True)
class MetricTraits:
    """What a reader must know to read a metric.

    Attributes:
        low: Smallest possible value.
        high: Largest possible value.
        better: Whether higher or lower is better, or whether only the distance to a retrained model counts.
        unit: ``"nats"``, ``"fraction"``, ``"seconds"``, …
        source: Paper and equation.
        cost: What it takes: forward passes, models, training.
        trust: What the number does not say.
    """

    low: float = float("-inf")
    high: float = float("inf")
    better: Literal["higher", "lower", "near retrained"] = "near retrained"
    unit: str = ""
    source: str = ""
    cost: str = ""
    trust: str = ""


@final
@attrs.frozen
class NotApplicable:
    """What `Metric.measure` returns in the place of a number that does not exist, and why it does not.

    Attributes:
        reason: Half a sentence, as ``"no retrained model at hand"``.
    """

    reason: str


@final
@attrs.frozen(kw_only=True)
class Measurement:
    """A number, or the reason why there is none.

    Attributes:
        value: None where the metric does not apply.
        reason: Why, when the value is None; else "".
    """

    value: float | None
    reason: str = ""


def _freeze(splits: Mapping[str, Iterable[Any]]) -> Mapping[str, Iterable[Any]]:
    return read_only(splits)  # typed: attrs takes the type of the argument from its converter


def _models(models: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple(models)


@final
@attrs.frozen(kw_only=True, eq=False)
class EvaluationInputs:
    """What a metric may look at.

    Attributes:
        model: The model under examination.
        splits: Batches by name (``"retain-train"``, ``"forget-train"``, ``"retain-test"``, ``"forget-test"``), each
            iterable more than once.
        objective: How a batch becomes losses.
        original: The model before the edit, where it is at hand.
        retrained: Models trained from scratch without the forget set.
    """

    model: nn.Module
    splits: Mapping[str, Iterable[Any]] = attrs.field(converter=_freeze)
    objective: Objective = attrs.field(factory=CrossEntropy)
    original: nn.Module | None = None
    retrained: tuple[nn.Module, ...] = attrs.field(default=(), converter=_models)

    __reduce__ = by_fields


class Metric(abc.ABC):
    """Measures a model. Subclass it and write `measure`; the public method sees that no model is changed by it.

    Example:
        >>> class Weights(Metric):
        ...     name = "weights"
        ...     def measure(self, inputs):
        ...         return {"weights": float(sum(p.numel() for p in inputs.model.parameters()))}
        >>> Weights().evaluate(EvaluationInputs(model=nn.Linear(2, 1), splits={}))
        {'weights': 3.0}
    """

    name: ClassVar[str]
    traits: ClassVar[MetricTraits] = MetricTraits()

    @abc.abstractmethod
    def measure(self, inputs: EvaluationInputs) -> Mapping[str, "float | NotApplicable | None"]:
        """Measure.

        Args:
            inputs: Models and data; leave them as they are.

        Returns:
            Name to value; where the metric does not apply, `NotApplicable` with the reason (or None, without one).
        """

    @final
    def evaluate(self, inputs: EvaluationInputs) -> dict[str, float | None]:
        """Measure, and refuse a metric that changed a model that it measured; see `examine` for the reasons.

        Args:
            inputs: Models and data.

        Returns:
            Name to value; None where the metric does not apply.
        """
        return {name: found.value for name, found in self.examine(inputs).items()}

    @final
    def examine(self, inputs: EvaluationInputs) -> dict[str, Measurement]:
        """Measure, refuse a metric that changed a model that it measured, and say why a value is missing.

        Args:
            inputs: Models and data.

        Returns:
            Name to value or reason.

        Raises:
            MismatchError: The metric changed a model (it was put back) or returned something
                else than None, `NotApplicable` and numbers within its bounds.
        """
        models = [m for m in (inputs.model, inputs.original, *inputs.retrained) if m is not None]
        guards = [ModelSnapshot(model) for model in dict.fromkeys(models)]
        problems: list[str] = []
        try:
            values = self.measure(inputs)
            for guard in guards:
                problems += guard.structure_changes()
                problems += [f"{n}: edited" for n in guard.changed_parameters() + guard.changed_buffers()]
        finally:
            # Backwards, so that the random state of the first guard is the one that stays.
            for guard in reversed(guards):
                guard.restore()
        who = f"metric {self.name!r} ({type(self).__module__}.{type(self).__qualname__})"
        raise_all(problems, where=f"{who} changed a model that it measured (it was put back)")
        if not isinstance(values, Mapping) or not all(_may_be_returned(v) for v in values.values()):
            raise MismatchError(f"{who}: expected a mapping of names to numbers or None, saw {values!r}")
        found = {str(key): _measurement(value) for key, value in values.items()}
        # Written so that NaN is outside too: a metric that fails must not pass for a number.
        low, high = self.traits.low, self.traits.high
        numbers = {key: m.value for key, m in found.items() if m.value is not None}
        outside = [f"{key}: saw {v}" for key, v in numbers.items() if not low <= v <= high]
        raise_all(outside, where=f"{who}: expected None or a number from {low:g} to {high:g}")
        return found


def _may_be_returned(value: object) -> bool:
    return value is None or isinstance(value, int | float | NotApplicable)


def _measurement(value: float | NotApplicable | None) -> Measurement:
    if value is None:
        return Measurement(value=None, reason="the metric gives no reason")
    return (
        Measurement(value=None, reason=value.reason)
        if isinstance(value, NotApplicable)
        else Measurement(value=float(value))
    )
