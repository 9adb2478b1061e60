"""Check a method, an estimator or a metric against all its laws, with or without pytest."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import unlearnkit.testing.laws  # noqa: F401 - registers the laws
from unlearnkit import ConfigurationError, ImportanceEstimator, Metric, Unlearner
from unlearnkit.testing.law import LawError, laws_for
from unlearnkit.testing.source import source

if TYPE_CHECKING:
    import pytest

Reasons = Mapping[str, str]
"""Name of a law to the reason why it is expected to be broken."""

_KINDS = (Unlearner, ImportanceEstimator, Metric)


def check_unlearner(method: Unlearner, *, examples: int | None = None) -> None:
    """Check a method against every law that applies to it.

    Args:
        method: An object with the options to check.
        examples: Cases to try for each law, instead of the law's own number; few for a method that trains.

    Raises:
        LawError: Names every law that is broken.

    Example:
        >>> from unlearnkit_methods.ssd import SelectiveSynapticDampening
        >>> check_unlearner(SelectiveSynapticDampening(alpha=10.0), examples=5)
    """
    _check(method, Unlearner, examples)


def check_estimator(estimator: ImportanceEstimator, *, examples: int | None = None) -> None:
    """Check an estimator against every law that applies to it; see `check_unlearner`."""
    _check(estimator, ImportanceEstimator, examples)


def check_metric(metric: Metric, *, examples: int | None = None) -> None:
    """Check a metric against every law that applies to it; see `check_unlearner`."""
    _check(metric, Metric, examples)


def broken_laws(subject: Any, *, examples: int | None = None) -> dict[str, LawError]:
    """Return the error of each law that an object breaks, by the name of the law; see `check_unlearner`."""
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


def parametrize_with_checks(
    subjects: Iterable[Any], *, expected_failures: Reasons | Callable[[Any], Reasons] | None = None
) -> "pytest.MarkDecorator":
    """Turn a test function of ``subject`` and ``law`` into one test per object and law that applies to it.

    Write ``@parametrize_with_checks([MyMethod(alpha=10.0)])`` above
    ``def test_contract(subject, law): law.check(subject)``. The ids are the same in every process.

    Args:
        subjects: Methods, estimators and metrics.
        expected_failures: Laws that are known to be broken, with the reason, or a function of the object that returns
            them. Such a test is a strict expected failure.

    Raises:
        ConfigurationError: Something that no law applies to, or an expected failure of such a law.
    """
    import pytest  # noqa: PLC0415 - the rest of this package works without it

    every, known, named = list(subjects), set[str](), set[str]()
    params = []
    for number, subject in enumerate(every):
        if not isinstance(subject, _KINDS):
            raise ConfigurationError(
                f"subject {number} (counted from 0): expected an object of a subclass of "
                f"{', '.join(kind.__name__ for kind in _KINDS)}, saw {subject!r}"
            )
        reasons = expected_failures(subject) if callable(expected_failures) else (expected_failures or {})
        laws = laws_for(subject)
        known |= {law.name for law in laws}
        named |= set(reasons)
        params += [(subject, law, reasons.get(law.name)) for law in laws]
    if named - known:
        raise ConfigurationError(
            f"expected_failures: expected names of laws that apply to these objects, saw {sorted(named - known)}"
        )
    ids = _unique([f"{_label(subject)}-{law.name}" for subject, law, _ in params])
    marks = [() if reason is None else (pytest.mark.xfail(reason=reason, strict=True),) for _, _, reason in params]
    return pytest.mark.parametrize(
        ("subject", "law"),
        [pytest.param(s, law, id=i, marks=m) for (s, law, _), i, m in zip(params, ids, marks, strict=True)],
    )


def _label(subject: Any) -> str:
    """Write an object as an id: no addresses, no quotes, no spaces, and sets in one order in every process."""
    return re.sub(r"[ '\"]", "", re.sub(r"float\(\"(.*?)\"\)", r"\1", source(subject, set())))


def _unique(ids: list[str]) -> list[str]:
    """Number repeated ids, in order."""
    seen, result = Counter[str](), []
    for one in ids:
        seen[one] += 1
        result.append(one if seen[one] == 1 else f"{one}-{seen[one]}")
    return result
