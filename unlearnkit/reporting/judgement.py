"""The verdict on an edit in one honest sentence: did it do anything, did the model survive, is it like retraining?"""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import final

import attrs

from unlearnkit.evaluation import Gap, LossAndAccuracy, gap_to_retrain
from unlearnkit.evaluation.gap import ENOUGH
from unlearnkit.evaluation.plot_data import PlotData
from unlearnkit.reporting.verdict import Scores, verdict
from unlearnkit.unlearning.report import Report

SURE = 0.95
"""Which share of further retrained models lies within the limit of `near`."""
_WIDE = 1.96


def near(models: int) -> float:
    """Return within how many standard deviations one more retrained model would lie, 95 times in 100.

    t_(n−1)(0.975)·√(1 + 1/n): the prediction interval of one more value of a normal distribution whose mean and
    deviation were estimated from n. Two standard deviations would be the limit of infinitely many models.

    Example:
        >>> [round(near(n), 2) for n in (3, 5, 10, 1000)]
        [4.97, 3.04, 2.37, 1.96]
    """
    from scipy.stats import t  # noqa: PLC0415 - it takes long to import

    quantile = float(t.ppf((1 + SURE) / 2, models - 1))
    return quantile * sqrt(1 + 1 / models)


@final
@attrs.frozen(kw_only=True)
class Measure:
    """One measure of an edited model beside the same of retrained models."""

    name: str
    gap: Gap
    resolution: float = 0.0

    @property
    def distance(self) -> float:
        """Return how far away it is, in standard deviations.

        Where all retrained models agree there is no standard deviation: then a difference within the resolution counts
        as 0, and any other as infinite.
        """
        if self.gap.sds is not None:
            return abs(self.gap.sds)
        return 0.0 if abs(self.gap.delta or 0.0) <= self.resolution * 1.001 else float("inf")


@final
@attrs.frozen(kw_only=True)
class Judgement:
    """What an edit came to.

    Attributes:
        kind: ``"nothing"`` (no weight changed), ``"no effect"``, ``"destroyed"``, ``"near"`` or ``"apart"`` (from
            retraining), ``"few references"``, ``"no reference"`` or ``"not measured"``.
        sentence: For people.
        measures: What was compared with retrained models.
    """

    kind: str
    sentence: str
    measures: tuple[Measure, ...] = ()


def judge(
    report: Report,
    before: Scores,
    after: Scores,
    *,
    retrained: Sequence[Scores] = (),
    views: PlotData | None = None,
) -> Judgement:
    """Say what an edit came to. The gap to retraining counts in both directions: forgetting too much is a gap too.

    Args:
        report: What the method did.
        before: Split to the scores of the original model.
        after: The same of the edited model.
        retrained: The same of each retrained model.
        views: For the attacks, whose areas are measures too.

    Returns:
        Kind and sentence.

    Example:
        >>> def score(accuracy): return {"forget-test": LossAndAccuracy(loss=1.0, accuracy=accuracy, samples=100)}
        >>> from unlearnkit.unlearning.report import TensorChange
        >>> edit = Report(method="m", tensors=(TensorChange(name="w", size=4, changed=1),))
        >>> known = [score(0.70), score(0.72), score(0.74)]
        >>> judge(edit, score(0.9), score(0.74), retrained=known).sentence
        'Within 1.0 sd of retraining on every measure: 1 measure, 3 retrained models.'
        >>> print(judge(edit, score(0.9), score(0.0), retrained=known).sentence)
        Not like retraining: forget-test accuracy is 0.000, retrained models have 0.720 ± 0.020 (36.0 sd below).
    """
    measures = tuple(_measures(after, retrained, views))
    if not report.changed and not report.buffers_changed:
        return Judgement(kind="nothing", sentence=_nothing(report), measures=measures)
    if not after:
        said = f"{report.sentence()} Nothing was measured: what that came to cannot be said."
        return Judgement(kind="not measured", sentence=said)
    said = " ".join(verdict(report, before, after))
    for words, kind in (("has no effect", "no effect"), ("is destroyed", "destroyed")):
        if words in said:
            return Judgement(kind=kind, sentence=said + _chance(kind, views), measures=measures)
    if not measures:
        return Judgement(kind="no reference", sentence=f"{_without_reference(retrained, before, after)} {said}".strip())
    return _compare(measures, len(retrained))


def _compare(measures: tuple[Measure, ...], models: int) -> Judgement:
    far = [measure for measure in measures if measure.distance > near(max(models, 2))]
    if models < ENOUGH:
        kind, said = "few references", _few(measures, models)
    elif far:
        kind, said = "apart", _apart(far, measures)
    else:
        kind, said = "near", _near(measures, models)
    return Judgement(kind=kind, sentence=said, measures=measures)


def _measures(after: Scores, retrained: Sequence[Scores], views: PlotData | None) -> Iterator[Measure]:
    for split, score in after.items():
        known = [each[split].accuracy for each in retrained if split in each]
        rates = [rate for rate in known if rate is not None]
        if score.accuracy is not None and rates:
            yield Measure(
                name=f"{split} accuracy",
                gap=gap_to_retrain(score.accuracy, rates),
                resolution=1 / score.samples,
            )
    curves = views.curves if views is not None else ()
    for attack in dict.fromkeys(curve.attack for curve in curves):
        areas: dict[str, list[float]] = {}
        for curve in curves:
            if curve.attack == attack:
                areas.setdefault(curve.model, []).append(curve.auc)
        if areas.get("unlearned") and len(areas.get("retrained", ())) == len(retrained) > 0:
            gap = gap_to_retrain(areas["unlearned"][0], areas["retrained"])
            error = next(c.guessing_error for c in curves if (c.attack, c.model) == (attack, "unlearned"))
            yield Measure(name=f"AUC of the {attack} attack", gap=gap, resolution=_WIDE * error)


def _nothing(report: Report) -> str:
    remark = report.remarks[0] if report.remarks else "no weight met the method's condition; it gave no other reason."
    if not report.size:
        return f"No edit was made: {remark}"
    return f"The edit did nothing: 0 of {report.size} weights changed, because {remark}"


def _chance(kind: str, views: PlotData | None) -> str:
    if kind != "destroyed" or views is None or not views.classes:
        return ""
    return f" Guessing among {len(views.classes)} classes gives about {1 / len(views.classes):.3f}."


def _without_reference(
    retrained: Sequence[Scores],
    before: Mapping[str, LossAndAccuracy],
    after: Mapping[str, LossAndAccuracy],
) -> str:
    changes = [
        f"{name} accuracy {before[name].accuracy:.3f}→{score.accuracy:.3f}"
        for name, score in after.items()
        if name in before and before[name].accuracy is not None and score.accuracy is not None
    ]
    why = "No retrained model at hand" if not retrained else "No accuracy to compare with the retrained models"
    measured = f" Measured: {', '.join(changes)}." if changes else ""
    return f"{why}: whether this is like retraining cannot be said.{measured}"


def _few(measures: Sequence[Measure], models: int) -> str:
    worst = max(measures, key=lambda m: abs(m.gap.delta or 0.0))
    gap, few = worst.gap, "One retrained model" if models == 1 else f"{models} retrained models"
    return (
        f"{few}, too few for a standard deviation: whether this is like retraining cannot be said. The largest "
        f"difference is {worst.name}, {gap.value:.3f} against {gap.mean:.3f}."
    )


def _near(measures: Sequence[Measure], models: int) -> str:
    most = max(measure.distance for measure in measures)
    count = f"{len(measures)} measure{'s' if len(measures) > 1 else ''}"
    agreed = [m.name for m in measures if m.gap.sds is None and m.gap.delta]
    note = f" (within sampling error where these agree: {', '.join(agreed)})" if agreed else ""
    if all(measure.gap.sds is None for measure in measures):
        return f"Like retraining on every measure: {count}, {models} retrained models that all agree{note}."
    return f"Within {most:.1f} sd of retraining on every measure: {count}, {models} retrained models{note}."


def _apart(far: Sequence[Measure], measures: Sequence[Measure]) -> str:
    # Among those where all retrained models agree the largest difference; else the most standard deviations.
    worst = max(far, key=lambda m: (m.distance, abs(m.gap.delta or 0.0)))
    others = len(far) - 1
    rest = f" {others} more of {len(measures)} measures {'is' if others == 1 else 'are'} away too." if others else ""
    return f"Not like retraining: {_compared(worst)}.{rest}"


def _compared(measure: Measure) -> str:
    gap = measure.gap
    side = "above" if (gap.delta or 0.0) > 0 else "below"
    if gap.sds is None:
        return f"{measure.name} is {gap.value:.3f}, {side} the {gap.mean:.3f} of all {gap.models} retrained models"
    return (
        f"{measure.name} is {gap.value:.3f}, retrained models have {gap.mean:.3f} ± {gap.sd:.3f} "
        f"({abs(gap.sds):.1f} sd {side})"
    )
