"""The contract of a metric: what it may read, and what it returns."""

import abc
import numbers
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, final

import attrs
from torch import nn

from unlearnkit.data.batches import check_batches
from unlearnkit.models.objective import CrossEntropy, Objective, check_objective
from unlearnkit.models.snapshot import ModelSnapshot
from unlearnkit.utils.errors import ConfigurationError, MismatchError, raise_all
from unlearnkit.utils.global_state import restored_globals
from unlearnkit.utils.options import by_fields, option, read_only, several


@final
@attrs.frozen(kw_only=True)
class MetricTraits:
    """How to read a metric, whose values lie from ``low`` to ``high``, in a unit such as ``"nats"`` or ``"fraction"``.

    ``better`` says whether higher or lower is better, or only the distance to a retrained model counts. ``source`` is
    paper and equation, ``cost`` the forward passes, models and training needed, ``trust`` what the number doesn't say.
    ``holds`` names the values that say what a model still holds of the forgotten samples below its outputs: the verdict
    compares them with the values of retrained models (see `FeatureMeasure`).
    """

    low: float = float("-inf")
    high: float = float("inf")
    better: Literal["higher", "lower", "near retrained"] = option(
        "near retrained", choices=("higher", "lower", "near retrained"), doc="which values are better"
    )
    unit: str = ""
    source: str = ""
    cost: str = ""
    trust: str = ""
    holds: tuple[str, ...] = attrs.field(default=(), converter=several)

    def __attrs_post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigurationError(f"MetricTraits: expected low < high, saw {self.low!r} and {self.high!r}")


FRACTION = MetricTraits(low=0.0, high=1.0, unit="fraction")


@final
@attrs.frozen
class NotApplicable:
    """What `Metric.measure` returns where there is no number, and why: ``"no retrained model at hand"``."""

    reason: str


@final
@attrs.frozen(kw_only=True)
class Measurement:
    """A number, or None and the reason why there is none; a number with a reason is a bound, and the reason says so."""

    value: float | None
    reason: str = ""


def _freeze(splits: Mapping[str, Iterable[Any]]) -> Mapping[str, Iterable[Any]]:
    for name, batches in splits.items():
        check_batches(batches, what=f"the split {name!r}")
        if isinstance(batches, Iterator):
            raise ConfigurationError(
                f"the split {name!r}: expected batches that can be read for each model, saw {type(batches).__name__}: "
                "pass a list, or a data loader"
            )
    return read_only(splits)  # attrs reads the type of the argument from this annotation


def _models(models: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    return tuple(models)


@final
@attrs.frozen(kw_only=True, eq=False)
class EvaluationInputs:
    """What a metric may read: the edited model, batches, and the models to compare it with.

    ``splits`` maps ``"retain-train"``, ``"forget-train"``, ``"retain-test"`` and ``"forget-test"`` to batches, iterable
    more than once; a split without samples is missing. ``original`` is the model before the edit; ``retrained``, often
    none, were trained without the forget set.
    """

    model: nn.Module
    splits: Mapping[str, Iterable[Any]] = attrs.field(converter=_freeze)
    objective: Objective = attrs.field(factory=CrossEntropy, converter=check_objective)
    original: nn.Module | None = None
    retrained: tuple[nn.Module, ...] = attrs.field(default=(), converter=_models)

    __reduce__ = by_fields


class Metric(abc.ABC):
    """Measures a model. Subclass it and write `measure`; `evaluate` and `examine` refuse a metric that changes a model.

    Examples:
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
    def measure(self, inputs: EvaluationInputs) -> Mapping[str, "float | Measurement | NotApplicable | None"]:
        """Return name to value; do not change the inputs. All models are in eval mode.

        A value is a number, a `Measurement` where a number needs a word (a bound, say), `NotApplicable` with the
        reason why there is none, or None without one.
        """

    @final
    def evaluate(self, inputs: EvaluationInputs) -> dict[str, float | None]:
        """Measure like `examine`, with None in place of a reason."""
        return {name: found.value for name, found in self.examine(inputs).items()}

    @final
    @restored_globals()
    def examine(self, inputs: EvaluationInputs) -> dict[str, Measurement]:
        """Measure; a changed model, which is restored, and values out of bounds are a `MismatchError`."""
        models = [m for m in (inputs.model, inputs.original, *inputs.retrained) if m is not None]
        snapshots = [ModelSnapshot(model) for model in dict.fromkeys(models)]
        problems: list[str] = []
        who = f"metric {self.name!r} ({type(self).__module__}.{type(self).__qualname__})"
        try:
            for snapshot in snapshots:
                snapshot.hide_gradients()
            for model in models:
                model.eval()
            values = self.measure(inputs)
            for snapshot in snapshots:
                problems += snapshot.structure_changes()
                problems += [f"{n}: edited" for n in snapshot.changed_parameters() + snapshot.changed_buffers()]
        except Exception as error:
            error.add_note(f"raised by {who}")
            raise
        finally:
            for snapshot in snapshots:
                snapshot.restore()
        raise_all(problems, where=f"{who} changed a model that it measured (it was put back)")
        if not isinstance(values, Mapping):
            raise MismatchError(f"{who}: expected a mapping of names to numbers or None, saw {values!r}")
        other = [f"{key}: saw {value!r}" for key, value in values.items() if not _is_value(value)]
        raise_all(other, where=f"{who}: expected a number (float(…) makes one), a Measurement, NotApplicable or None")
        found = {str(key): _measurement(value) for key, value in values.items()}
        low, high = self.traits.low, self.traits.high
        known = {key: m.value for key, m in found.items() if m.value is not None}
        outside = [f"{key}: saw {v}" for key, v in known.items() if not low <= v <= high]  # or NaN
        raise_all(outside, where=f"{who}: expected None or a number from {low:g} to {high:g}")
        return found


def _is_value(value: Any) -> bool:
    return value is None or isinstance(value, numbers.Real | Measurement | NotApplicable)


def _measurement(value: float | Measurement | NotApplicable | None) -> Measurement:
    if isinstance(value, Measurement):
        return value
    if value is None or isinstance(value, NotApplicable):
        return Measurement(value=None, reason=value.reason if value else "the metric gives no reason")
    return Measurement(value=float(value))


@final
@attrs.frozen(kw_only=True)
class FeatureMeasure:
    """What a model still holds below its outputs, by one measure, beside the original and the retrained models.

    ``error`` is half the width of the 95 % interval that the finite number of samples gives ``value``.
    """

    name: str
    value: float
    original: float | None = None
    retrained: tuple[float, ...] = ()
    error: float = 0.0


def feature_measures(
    metrics: Mapping[str, Metric], measured: Mapping[str, Mapping[str, Measurement]]
) -> tuple[FeatureMeasure, ...]:
    """Collect the values that metrics name in ``traits.holds``.

    For a value called ``V`` a metric returns ``"V"``, and where they are known ``"original V"``, ``"retrained 1 V"``,
    ``"retrained 2 V"``, …, and ``"error V"``.
    """
    found = []
    for name, metric in metrics.items():
        known = {key: m.value for key, m in measured[name].items() if m.value is not None}
        for value in metric.traits.holds:
            if value in known:
                retrained = (known.get(f"retrained {i} {value}") for i in range(1, len(known) + 1))
                found.append(
                    FeatureMeasure(
                        name=f"{name} {value}",
                        value=known[value],
                        original=known.get(f"original {value}"),
                        retrained=tuple(number for number in retrained if number is not None),
                        error=known.get(f"error {value}", 0.0),
                    )
                )
    return tuple(found)
