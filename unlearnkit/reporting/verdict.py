"""What a run came to, in words: no effect, nothing forgotten, model destroyed."""

from collections.abc import Mapping

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.report import Report

DESTROYED = 0.5
"""A model that keeps at most this share of its accuracy on retained data is called destroyed."""

Scores = Mapping[str, LossAndAccuracy]


def verdict(report: Report, before: Scores, after: Scores) -> tuple[str, ...]:
    """Say what a reader of the numbers must not overlook; a small loss of accuracy is left to the numbers.

    Args:
        report: What the method did.
        before: Split to the scores of the original model; names start with ``retain`` or ``forget``.
        after: The same of the edited model.

    Returns:
        Sentences; none when the forget set is predicted worse than before and the retained data are not lost, or when
        nothing was measured.

    Example:
        >>> good, lost = (LossAndAccuracy(loss=0.1, accuracy=a, samples=9) for a in (0.96, 0.11))
        >>> verdict(Report(method="prune"), {"retain-test": good}, {"retain-test": lost})
        ('The model is destroyed: retain-test accuracy 0.960→0.110.',)
    """
    pairs = {name: (before[name], score) for name, score in after.items() if name in before}
    if pairs and report.changed and all(was == now for was, now in pairs.values()):
        return (f"The edit has no effect: no loss and no accuracy changed ({', '.join(pairs)}).",)
    rates = {
        name: (was.accuracy, now.accuracy)
        for name, (was, now) in pairs.items()
        if was.accuracy is not None and now.accuracy is not None
    }
    forget = {name: rate for name, rate in rates.items() if name.startswith("forget")}
    lost = {n: (was, now) for n, (was, now) in rates.items() if n.startswith("retain") and 0 < was >= now / DESTROYED}
    sentences = []
    if report.changed and forget and all(now >= was for was, now in forget.values()):
        sentences.append(f"By accuracy nothing was forgotten: {_texts(forget)}.")
    if lost:
        sentences.append(f"The model is destroyed: {_texts(lost)}.")
    return tuple(sentences)


def _texts(rates: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} accuracy {was:.3f}→{now:.3f}" for name, (was, now) in rates.items())
