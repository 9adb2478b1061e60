"""Check a method, an estimator or a metric against all its laws, with or without pytest."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import unlearnkit.testing.laws  # noqa: F401 - registers the laws
from unlearnkit import ConfigurationError, ImportanceEstimator, Metric, Unlearner
from unlearnkit.testing.law import LawError, laws_for, source
from unlearnkit.unlearning.unlearner import method_fault
from unlearnkit.utils.options import final_fault, refuse

if TYPE_CHECKING:
    import pytest

Reasons = Mapping[str, str]
"""Name of a law to the reason why it is expected to be broken."""

_KINDS = (Unlearner, ImportanceEstimator, Metric)


def check_unlearner(method: Unlearner, *, examples: int | None = None) -> None:
    """Check a method, with its options, against every law that applies to it: a `LawError` names all that are broken.

    ``examples`` is how many cases to try for each law, instead of the law's own number: few for a method that trains.

    Examples:
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
    refuse(method_fault(subject))
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
    refuse(method_fault(subject) or final_fault(type(subject)))
    broken = list(broken_laws(subject, examples=examples).values())
    if broken:
        raise LawError("\n\n".join(map(str, broken))) from broken[0].__cause__


def parametrize_with_checks(
    subjects: Iterable[Any], *, expected_failures: Reasons | Callable[[Any], Reasons] | None = None
) -> "pytest.MarkDecorator":
    """Turn a test function of ``subject`` and ``law`` into one test per object and law that applies to it.

    Write ``@parametrize_with_checks([MyMethod(alpha=10.0)])`` above
    ``def test_contract(subject, law): law.check(subject)``. The ids are the same in every process. Laws that are known
    to be broken are strict ``expected_failures``, with the reason; a function may return them for each object.
    """
    import pytest  # noqa: PLC0415 - the rest of this package works without it

    params, known, named, taken = list[Any](), set[str](), set[str](), Counter[str]()
    for number, subject in enumerate(subjects):
        if not isinstance(subject, _KINDS):
            raise ConfigurationError(
                f"subject {number} (counted from 0): expected an object of a subclass of "
                f"{', '.join(kind.__name__ for kind in _KINDS)}, saw {subject!r}"
            )
        refuse(method_fault(subject))
        reasons = expected_failures(subject) if callable(expected_failures) else (expected_failures or {})
        named |= set(reasons)
        for law in laws_for(subject):
            known.add(law.name)
            label, reason = f"{_label(subject)}-{law.name}", reasons.get(law.name)
            taken[label] += 1
            unique = label if taken[label] == 1 else f"{label}-{taken[label]}"
            marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True)
            params.append(pytest.param(subject, law, id=unique, marks=marks))
    if named - known:
        raise ConfigurationError(
            f"expected_failures: expected names of laws that apply to these objects, saw {sorted(named - known)}"
        )
    return pytest.mark.parametrize(("subject", "law"), params)


def _label(subject: Any) -> str:
    """Write an object as an id: no addresses, no quotes, no spaces, and sets in one order in every process."""
    return re.sub(r"[ '\"]", "", re.sub(r"float\(\"(.*?)\"\)", r"\1", source(subject, set())))
