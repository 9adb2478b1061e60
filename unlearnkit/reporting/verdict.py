"""What a run came to, in words: no effect, nothing forgotten, model destroyed."""

from collections.abc import Mapping
from typing import final

import attrs

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.unlearning.report import Report

DESTROYED = 0.5
"""A model that keeps at most this share of its accuracy on retained data is called destroyed."""

Scores = Mapping[str, LossAndAccuracy]


@final
@attrs.frozen(kw_only=True)
class Finding:
    """Something that a reader of the numbers must not overlook."""

    kind: str
    sentence: str


def verdict(report: Report, before: Scores, after: Scores) -> tuple[str, ...]:
    """Say what a reader of the numbers must not overlook; a small loss of accuracy is left to the numbers.

    Example:
        >>> good, lost = (LossAndAccuracy(loss=0.1, accuracy=a, samples=9) for a in (0.96, 0.11))
        >>> verdict(Report(method="prune"), {"retain-test": good}, {"retain-test": lost})
        ('The model is destroyed: retain-test accuracy 0.960→0.110.',)
    """
    return tuple(found.sentence for found in findings(report, before, after))


def findings(report: Report, before: Scores, after: Scores) -> tuple[Finding, ...]:
    """Find what `verdict` says."""
    pairs = {name: (before[name], score) for name, score in after.items() if name in before}
    if pairs and report.changed and all(was == now for was, now in pairs.values()):
        said = f"The edit has no effect: no loss and no accuracy changed ({', '.join(pairs)})."
        return (Finding(kind="no effect", sentence=said),)
    rates = {
        name: (was.accuracy, now.accuracy)
        for name, (was, now) in pairs.items()
        if was.accuracy is not None and now.accuracy is not None
    }
    forget = {name: rate for name, rate in rates.items() if name.startswith("forget")}
    lost = {n: (was, now) for n, (was, now) in rates.items() if n.startswith("retain") and 0 < was >= now / DESTROYED}
    found = []
    if report.changed and forget and all(now >= was for was, now in forget.values()):
        said = f"By accuracy nothing was forgotten: {_texts(forget)}."
        found.append(Finding(kind="nothing forgotten", sentence=said))
    if lost:
        found.append(Finding(kind="model destroyed", sentence=f"The model is destroyed: {_texts(lost)}."))
    return tuple(found)


def _texts(rates: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} accuracy {was:.3f}→{now:.3f}" for name, (was, now) in rates.items())
