"""All laws by the base class that they belong to, and which of them an object owes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from unlearnkit import ElementwiseUnlearner, ImportanceEstimator, Metric, TrainingUnlearner, Unlearner
from unlearnkit.testing.law import Law
from unlearnkit.testing.laws.elementwise import ELEMENTWISE_LAWS
from unlearnkit.testing.laws.estimator import ESTIMATOR_LAWS
from unlearnkit.testing.laws.metric import METRIC_LAWS
from unlearnkit.testing.laws.unlearner import EDITED_ONCE, TRAINING_LAWS, UNLEARNER_LAWS

LAWS: Mapping[type, tuple[Law, ...]] = MappingProxyType(
    {
        Unlearner: UNLEARNER_LAWS,
        TrainingUnlearner: TRAINING_LAWS,
        ElementwiseUnlearner: (*ELEMENTWISE_LAWS, EDITED_ONCE),
        ImportanceEstimator: ESTIMATOR_LAWS,
        Metric: METRIC_LAWS,
    }
)
"""Base class to the laws that it adds to those of its own base classes."""


def laws_for(subject: Any) -> tuple[Law, ...]:
    """Collect the laws that apply to a method, an estimator or a metric, with its traits and options.

    A class adds laws of its own in an attribute ``laws``; one of the same name replaces an inherited one.

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
