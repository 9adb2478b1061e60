"""The record of one edit, and the verdict: did it change anything, did the model survive, is it like retraining?"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, final

import attrs

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.metrics.retrain_gap import ENOUGH, Gap, gap_to_retrain
from unlearnkit.evaluation.plot_data import PlotData
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils.errors import ConfigurationError, StoreError
from unlearnkit.utils.files import read_text
from unlearnkit.utils.memory import PeakMemory
from unlearnkit.utils.structuring import structure

FORMAT = "unlearnkit-run-1"
DESTROYED = 0.5  # a model that keeps at most this share of its accuracy on retained data is called destroyed
COVERAGE = 0.95  # the share of further retrained models that lie within the limit of `near`
_NORMAL_QUANTILE = 1.96

Scores = Mapping[str, LossAndAccuracy]


@final
@attrs.frozen(kw_only=True)
class Measure:
    """A number of an edited model, compared with the same number of retrained models."""

    name: str
    gap: Gap
    resolution: float

    @property
    def distance(self) -> float:
        """Distance in standard deviations; where there are none, 0 within the resolution, else infinite."""
        if self.gap.sds is not None:
            return abs(self.gap.sds)
        return 0.0 if abs(self.gap.delta or 0.0) <= self.resolution * 1.001 else float("inf")


@final
@attrs.frozen(kw_only=True)
class Judgement:
    """The verdict on an edit, and the measures that were compared with retrained models."""

    # nothing, no effect, destroyed, near, apart, few references, no reference, not measured
    kind: str
    sentence: str
    measures: tuple[Measure, ...] = ()


@final
@attrs.frozen(kw_only=True)
class RunRecord:
    """The results of one edit.

    ``forget`` describes the forget set: scenario, sizes, a hash of the indices. ``before``, ``after`` and each of
    ``retrained`` map splits to scores. ``metrics`` has the values of each metric, and ``not_applicable`` the reason for
    each None. ``manifest`` is what two runs must share to give the same bits, and ``views`` the plot data of the page.
    """

    label: str
    report: Report
    forget: Mapping[str, Any] = attrs.field(factory=dict)
    before: Scores = attrs.field(factory=dict)
    after: Scores = attrs.field(factory=dict)
    metrics: Mapping[str, Mapping[str, float | None]] = attrs.field(factory=dict)
    not_applicable: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)
    memory: PeakMemory | None = None
    manifest: Mapping[str, Any] = attrs.field(factory=dict)
    tuning: Mapping[str, Any] | None = None
    retrained: tuple[Scores, ...] = ()
    views: PlotData | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], *, where: str = "report") -> "RunRecord":
        """Read what `to_dict` wrote; ignore keys that are derived or that another version added."""
        if plain.get("format") != FORMAT:
            raise StoreError(f"{where}: expected the format {FORMAT!r}, saw {plain.get('format')!r}")
        mine, report, tensors = _fields(cls, plain), _fields(Report, plain), plain.get("tensors", [])
        if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
            raise StoreError(f"{where}: expected a list of tables as tensors, saw {str(tensors)[:80]}")
        report["tensors"] = [_fields(TensorChange, tensor) for tensor in tensors]
        try:
            return structure({**mine, "report": report, "memory": plain.get("peak_memory")}, cls, where=where)
        except ConfigurationError as error:
            raise StoreError(f"{error}: the file was changed, or another version wrote it") from error

    def judgement(self) -> Judgement:
        """Return the verdict; see `judge`."""
        return judge(self.report, self.before, self.after, retrained=self.retrained, views=self.views)

    def sentence(self) -> str:
        """What the edit did, its `findings`, and how uncertain its importances are."""
        found = findings(self.report, self.before, self.after)
        return " ".join([self.report.sentence(), *found.values(), *self.report.uncertainty()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the report's own keys at the top level."""
        judged = self.judgement()
        plain = attrs.asdict(self, filter=attrs.filters.exclude("label", "report"))
        return {
            "format": FORMAT,
            "label": self.label,
            "sentence": self.sentence(),
            "verdict": {"kind": judged.kind, "sentence": judged.sentence},
            **self.report.to_dict(),
            "peak_memory": plain.pop("memory"),
            "retrained": list(plain.pop("retrained")),
            **{name: value for name, value in plain.items() if value is not None},
        }


def _fields(kind: type[attrs.AttrsInstance], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: plain[field.name] for field in attrs.fields(kind) if field.name in plain}


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def read_record(folder: Path) -> RunRecord:
    """Read ``report.json`` from a folder of results, or raise `StoreError`."""
    path = folder / "report.json"
    try:
        plain = json.loads(read_text(path), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read the record of a run from {path}: {error}") from error
    return RunRecord.from_dict(plain if isinstance(plain, dict) else {}, where=str(path))


def judge(
    report: Report, before: Scores, after: Scores, *, retrained: Sequence[Scores] = (), views: PlotData | None = None
) -> Judgement:
    """Give the verdict on an edit; forgetting more than the retrained models is a gap too."""
    measures, models = tuple(_measures(after, retrained, views)), len(retrained)
    found = findings(report, before, after)
    said = " ".join(found.values())
    if not report.changed and not report.buffers_changed:
        kind, said = "nothing", _nothing(report)
    elif not after:
        kind, said = "not measured", f"{report.sentence()} Nothing was measured, so its effect is unknown."
    elif "no effect" in found:
        kind = "no effect"
    elif "model destroyed" in found:
        kind, said = "destroyed", said + _chance(views)
    elif not measures:
        kind, said = "no reference", f"{_without_reference(retrained, before, after)} {said}".strip()
    elif models < ENOUGH:
        kind, said = "few references", _few(measures, models)
    elif far := [measure for measure in measures if measure.distance > near(models)]:
        kind, said = "apart", _apart(far, measures)
    else:
        kind, said = "near", _near(measures, models)
    return Judgement(kind=kind, sentence=said, measures=measures)


def findings(report: Report, before: Scores, after: Scores) -> dict[str, str]:
    """What a reader of the numbers must not overlook: "no effect", "nothing forgotten", "model destroyed", in words."""
    pairs = {name: (before[name], score) for name, score in after.items() if name in before}
    if pairs and report.changed and all(was == now for was, now in pairs.values()):
        return {"no effect": f"The edit has no effect: no loss and no accuracy changed ({', '.join(pairs)})."}
    rates = _rates(before, after)
    forget = {name: rate for name, rate in rates.items() if name.startswith("forget")}
    lost = {n: (was, now) for n, (was, now) in rates.items() if n.startswith("retain") and 0 < was >= now / DESTROYED}
    found = {}
    if report.changed and forget and all(now >= was for was, now in forget.values()):
        found["nothing forgotten"] = f"By accuracy nothing was forgotten: {_texts(forget)}."
    if lost:
        found["model destroyed"] = f"The model is destroyed: {_texts(lost)}."
    return found


def near(models: int) -> float:
    """Half width of the 95 % prediction interval of one more model, in sd of n models: t_(n−1)(0.975)·√(1 + 1/n)."""
    from scipy.stats import t  # noqa: PLC0415 - it takes long to import

    return float(t.ppf((1 + COVERAGE) / 2, models - 1)) * sqrt(1 + 1 / models)


def _measures(after: Scores, retrained: Sequence[Scores], views: PlotData | None) -> Iterator[Measure]:
    for split, score in after.items():
        known = [each[split].accuracy for each in retrained if split in each]
        rates = [rate for rate in known if rate is not None]
        if score.accuracy is not None and rates:
            gap = gap_to_retrain(score.accuracy, rates)
            yield Measure(name=f"{split} accuracy", gap=gap, resolution=1 / score.samples)
    curves = views.curves if views is not None else ()
    for mine in (curve for curve in curves if curve.model == "unlearned"):
        areas = [curve.auc for curve in curves if (curve.attack, curve.model) == (mine.attack, "retrained")]
        if len(areas) == len(retrained) > 0:
            gap, error = gap_to_retrain(mine.auc, areas), _NORMAL_QUANTILE * mine.guessing_error
            yield Measure(name=f"AUC of the {mine.attack} attack", gap=gap, resolution=error)


def _nothing(report: Report) -> str:
    remark = report.remarks[0] if report.remarks else "no weight met the method's condition; it gave no other reason."
    if not report.size:
        return f"No edit was made: {remark}"
    return f"The edit did nothing: 0 of {report.size} weights changed, because {remark}"


def _chance(views: PlotData | None) -> str:
    if views is None or not views.classes:
        return ""
    return f" Guessing among {len(views.classes)} classes gives about {1 / len(views.classes):.3f}."


def _without_reference(retrained: Sequence[Scores], before: Scores, after: Scores) -> str:
    rates = _rates(before, after)
    why = "No accuracy to compare with the retrained models" if retrained else "No retrained model at hand"
    measured = f" Measured: {_texts(rates)}." if rates else ""
    return f"{why}, so it is unknown whether this is like retraining.{measured}"


def _few(measures: Sequence[Measure], models: int) -> str:
    worst = max(measures, key=lambda m: abs(m.gap.delta or 0.0))
    gap, few = worst.gap, "One retrained model" if models == 1 else f"{models} retrained models"
    return (
        f"{few}, too few for a standard deviation, so it is unknown whether this is like retraining. The largest "
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
    gap, side = worst.gap, "above" if (worst.gap.delta or 0.0) > 0 else "below"
    if gap.sds is None:
        others_have = f"{side} the {gap.mean:.3f} of all {gap.models} retrained models"
    else:
        others_have = f"retrained models have {gap.mean:.3f} ± {gap.sd:.3f} ({abs(gap.sds):.1f} sd {side})"
    return f"Not like retraining: {worst.name} is {gap.value:.3f}, {others_have}.{rest}"


def _rates(before: Scores, after: Scores) -> dict[str, tuple[float, float]]:
    pairs = {name: (before[name].accuracy, score.accuracy) for name, score in after.items() if name in before}
    return {name: (was, now) for name, (was, now) in pairs.items() if was is not None and now is not None}


def _texts(rates: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} accuracy {was:.3f}→{now:.3f}" for name, (was, now) in rates.items())
