"""All laws by base class, and which of them apply to an object."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from unlearnkit import ElementwiseUnlearner, ImportanceEstimator, Metric, TrainingUnlearner, Unlearner
from unlearnkit.testing.law import Law
from unlearnkit.testing.laws.elementwise import ELEMENTWISE_LAWS
from unlearnkit.testing.laws.estimator import ESTIMATOR_LAWS
from unlearnkit.testing.laws.metric import METRIC_LAWS
from unlearnkit.testing.laws.unlearner import TRAINING_LAWS, UNLEARNER_LAWS

LAWS: Mapping[type, tuple[Law, ...]] = MappingProxyType(
    {
        Unlearner: tuple(UNLEARNER_LAWS),
        TrainingUnlearner: tuple(TRAINING_LAWS),
        ElementwiseUnlearner: tuple(ELEMENTWISE_LAWS),
        ImportanceEstimator: tuple(ESTIMATOR_LAWS),
        Metric: tuple(METRIC_LAWS),
    }
)
"""Base class to the laws that it adds to those of its base classes."""


def laws_for(subject: Any) -> tuple[Law, ...]:
    """Collect the laws that apply to a method, an estimator or a metric, with its traits and options.

    A class may add laws in an attribute ``laws``; one of the same name replaces an inherited one.

    Example:
        >>> from unlearnkit import DiagonalFisher
        >>> [law.name for law in laws_for(DiagonalFisher()) if law.promise == "batch_free"]
        ['additive', 'order-free', 'batch-size-free']
    """
    found: dict[str, Law] = {}
    for cls in reversed(type(subject).__mro__):
        for law in (*LAWS.get(cls, ()), *vars(cls).get("laws", ())):
            found[law.name] = law
    return tuple(law for law in found.values() if law.applies(subject))
