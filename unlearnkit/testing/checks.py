"""Check a method, an estimator or a metric against all its laws, with or without pytest."""

from typing import Any

from unlearnkit import ConfigurationError, ImportanceEstimator, Metric, Unlearner
from unlearnkit.testing.law import LawError
from unlearnkit.testing.laws import laws_for


def check_unlearner(method: Unlearner, *, examples: int | None = None) -> None:
    """Check a method against every law that it owes.

    Args:
        method: An object with the options to check.
        examples: Cases to try for each law, instead of the law's own number; few for a method that trains.

    Raises:
        LawError: At least one law is broken; the message tells of all of them.

    Example:
        >>> from unlearnkit_methods.ssd import SelectiveSynapticDampening
        >>> check_unlearner(SelectiveSynapticDampening(alpha=10.0), examples=5)
    """
    _check(method, Unlearner, examples)


def check_estimator(estimator: ImportanceEstimator, *, examples: int | None = None) -> None:
    """Check an estimator against every law that it owes.

    Args:
        estimator: An object with the options to check.
        examples: Cases to try for each law, instead of the law's own number.

    Raises:
        LawError: At least one law is broken; the message tells of all of them.
    """
    _check(estimator, ImportanceEstimator, examples)


def check_metric(metric: Metric, *, examples: int | None = None) -> None:
    """Check a metric against every law that it owes.

    Args:
        metric: An object with the options to check.
        examples: Cases to try for each law, instead of the law's own number.

    Raises:
        LawError: At least one law is broken; the message tells of all of them.
    """
    _check(metric, Metric, examples)


def broken_laws(subject: Any, *, examples: int | None = None) -> dict[str, LawError]:
    """Check an object against every law that it owes, and go on after a broken one.

    Args:
        subject: A method, an estimator or a metric.
        examples: Cases to try for each law, instead of the law's own number.

    Returns:
        Name of each broken law to its error.
    """
    broken = {}
    for law in laws_for(subject):
        try:
            law.check(subject, examples=examples)
        except LawError as error:
            broken[law.name] = error
    return broken


def _check(subject: Any, kind: type, examples: int | None) -> None:
    if not isinstance(subject, kind):
        what = f"the class {subject.__name__}" if isinstance(subject, type) else type(subject).__name__
        raise ConfigurationError(f"expected an object of a subclass of {kind.__name__}, saw {what}")
    broken = list(broken_laws(subject, examples=examples).values())
    if broken:
        raise LawError("\n\n".join(map(str, broken))) from broken[0].__cause__
