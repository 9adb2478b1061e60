"""The verdict on an edit, in two halves: what the model's outputs say, and what its features still hold."""

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import final

import attrs
from torch import nn

from unlearnkit.evaluation import EvaluationInputs, FeatureMeasure, LossAndAccuracy, Metric, loss_and_accuracy
from unlearnkit.evaluation.metric import feature_measures
from unlearnkit.evaluation.metrics.retrain_gap import ENOUGH, Gap, gap_to_retrain
from unlearnkit.evaluation.model_outputs import NORMAL_QUANTILE, ModelOutputs
from unlearnkit.evaluation.plot_data import PlotData, collect_plot_data
from unlearnkit.unlearning.report import Report
from unlearnkit.utils import display
from unlearnkit.utils.text import number

DESTROYED = 0.5  # a model that keeps at most this share of its accuracy on retained data is called destroyed
COVERAGE = 0.95  # the share of further retrained models that lie within the limit of `near`
_FAR = 2.0  # a loss on forgotten samples that is so many times that of retrained models is far above it
HEAD_SWAP, RECOVERY = "head-swap", "recovery"

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
        """Distance in standard deviations: 0 within the resolution, else infinite where all models agree."""
        if abs(self.gap.delta or 0.0) <= self.resolution * 1.001:
            return 0.0
        return float("inf") if self.gap.sds is None else abs(self.gap.sds)


@final
@attrs.frozen(kw_only=True)
class Judgement:
    """The verdict on an edit, and the measures that were compared with retrained models.

    ``says`` is what the outputs say: near, apart or over-forgotten; ``holds`` what the features hold: near, still
    there, apart, not looked at, or cannot tell, where nothing tells the model apart from the original. Both are empty
    where there are too few retrained models. ``kind`` follows from both: near only where both are near, suppressed
    where the features are still there; or it is nothing, no effect, destroyed, no reference, few references, not
    measured. A notebook shows the sentence and the measures.
    """

    kind: str
    sentence: str
    says: str = ""
    holds: str = ""
    measures: tuple[Measure, ...] = attrs.field(default=(), repr=display.counted)
    features: tuple[FeatureMeasure, ...] = attrs.field(default=(), repr=display.counted)

    def _repr_html_(self) -> str:
        rows = [(m.name, *map(number, (m.gap.value, m.gap.mean, m.gap.sd, m.gap.sds))) for m in self.measures]
        rows += [(f.name, number(f.value), ", ".join(map(number, f.retrained)), "–", "–") for f in self.features]
        header = ("measure", "unlearned", "retrained", "sd", "gap in sd")
        return display.paragraphs(self.sentence) + display.table(header, rows)


def judge(
    report: Report,
    before: Scores,
    after: Scores,
    *,
    retrained: Sequence[Scores] = (),
    views: PlotData | None = None,
    features: Sequence[FeatureMeasure] = (),
    whole_class: bool = False,
) -> Judgement:
    """Give the verdict on an edit; forgetting more than the retrained models is a gap too.

    A whole class is judged without `RECOVERY`, which says little of it, and without the head-swap that was not fitted
    to it, which is 0 for every model.
    """
    if whole_class:
        features = [feature for feature in features if feature.name != f"{HEAD_SWAP} forget-train"]
    measures, models = tuple(_measures(after, retrained, views)), len(retrained)
    found = findings(report, before, after)
    said, says, holds = " ".join(found.values()), "", ""
    if not report.changed and not report.buffers_changed:
        kind, said = "nothing", _nothing(report)
    elif not after:
        kind, said = "not measured", f"{report.sentence()} Nothing was measured, so its effect is unknown."
    elif "no effect" in found:
        kind = "no effect"
    elif "model destroyed" in found:
        kind, said = "destroyed", said + _chance(views)
    elif not measures:
        parts = (_without_reference(retrained, before, after, features, views), said, confined(report))
        kind, said = "no reference", " ".join(part for part in parts if part)
    elif models < ENOUGH:
        kind, said = "few references", _few(measures, models)
    else:
        says, of_outputs = _outputs(measures, after, retrained)
        holds, of_features = _features(features, models, whole_class=whole_class)
        kind = _kind(says, holds)
        first, second = (of_features, of_outputs) if kind == "suppressed" else (of_outputs, of_features)
        said = " ".join(part for part in (first, second, confined(report)) if part)
    return Judgement(kind=kind, sentence=said, says=says, holds=holds, measures=measures, features=tuple(features))


def verdict(
    inputs: EvaluationInputs, report: Report, *, metrics: Mapping[str, Metric], whole_class: bool = False
) -> Judgement:
    """Measure an edited model and give the verdict; ``metrics`` are those whose ``traits.holds`` look at features."""

    def scores(model: nn.Module) -> dict[str, LossAndAccuracy]:
        splits = inputs.splits.items()
        return {name: loss_and_accuracy(model, batches, objective=inputs.objective) for name, batches in splits}

    measured = {name: metric.examine(inputs) for name, metric in metrics.items()}
    return judge(
        report,
        scores(inputs.original) if inputs.original is not None else {},
        scores(inputs.model),
        retrained=[scores(model) for model in inputs.retrained],
        views=collect_plot_data(ModelOutputs(inputs)),
        features=feature_measures(metrics, measured),
        whole_class=whole_class,
    )


def _kind(says: str, holds: str) -> str:
    if says != "apart" and holds == "still there":
        return "suppressed"
    if says == "near":
        return {"near": "near", "not looked at": "outputs only", "cannot tell": "outputs only"}.get(holds, "apart")
    return says


def _outputs(measures: Sequence[Measure], after: Scores, retrained: Sequence[Scores]) -> tuple[str, str]:
    """Return what the outputs say, and the sentence."""
    models = len(retrained)
    far = [measure for measure in measures if measure.distance > near(models)]
    worse = [m for m in far if m.name.startswith("forget") and ((m.gap.delta or 0.0) > 0) == m.name.endswith("loss")]
    above = _losses_far_above(after, retrained)
    if (worse or above) and all(m in worse or m.name.startswith("AUC") for m in far):
        sentences = [above] if above else []
        sentences += [_apart(far, measures)] if far else []
        return "over-forgotten", f"Over-forgotten: {' '.join(sentences)}"
    if far:
        return "apart", f"Not like retraining: {_apart(far, measures)}"
    return "near", _near(measures, models)


def _losses_far_above(after: Scores, retrained: Sequence[Scores]) -> str:
    for split, score in after.items():
        known = [each[split].loss for each in retrained if split in each]
        if split.startswith("forget") and len(known) >= ENOUGH:
            gap = gap_to_retrain(score.loss, known)
            if score.loss > _FAR * (gap.mean or 0.0) and (gap.sds is None or gap.sds > near(len(known))):
                return f"{split} loss is {score.loss:.3g}, retrained models have {gap.mean:.3g}."
    return ""


def _features(features: Sequence[FeatureMeasure], models: int, *, whole_class: bool) -> tuple[str, str]:
    """Return what the features hold, and the sentence."""
    told = [f for f in features if not (whole_class and f.name.startswith(f"{RECOVERY} "))]
    compared = [(f, gap_to_retrain(f.value, f.retrained)) for f in told if len(f.retrained) >= ENOUGH]

    def close(value: float, f: FeatureMeasure, gap: Gap) -> bool:
        return abs(value - (gap.mean or 0.0)) <= max(near(models) * (gap.sd or 0.0), f.error)

    def nearer_to_original(f: FeatureMeasure, gap: Gap) -> bool:
        return f.original is not None and abs(f.value - f.original) < abs(gap.delta or 0.0)

    # Where the original itself is near retraining, a measure cannot tell forgetting from hiding.
    tells = {f.name: f.original is not None and not close(f.original, f, gap) for f, gap in compared}
    far = [(f, gap) for f, gap in compared if not close(f.value, f, gap)]
    there = [(f, gap) for f, gap in far if (gap.delta or 0.0) > 0 and tells[f.name] and nearer_to_original(f, gap)]
    if far:
        f, gap = max(there or far, key=lambda pair: abs(pair[1].delta or 0.0))
        if there:
            return "still there", f"The features still hold what was to be forgotten: {_held(f, gap)}."
        return "apart", f"The features are not like those of retrained models: {_held(f, gap)}."
    telling = [(f, gap) for f, gap in compared if tells[f.name] and not nearer_to_original(f, gap)]
    wanted = (HEAD_SWAP,) if whole_class else (HEAD_SWAP, RECOVERY)
    missing = [name for name in wanted if not any(f.name.startswith(f"{name} ") for f, _ in telling)]
    if not missing:
        return "near", f"The features are near, too: {'; '.join(_held(f, gap) for f, gap in telling)}."
    blind = [_held(f, gap) for f, gap in compared if (f, gap) not in telling]
    why = f"; not told apart from the original: {'; '.join(blind)}" if blind else ""
    unseen = [name for name in missing if not any(f.name.startswith(f"{name} ") for f, _ in compared)]
    holds = "not looked at" if unseen else "cannot tell"
    return holds, f"Outputs only: no {' and no '.join(missing)} that tells forgetting from hiding{why}."


def _held(feature: FeatureMeasure, gap: Gap) -> str:
    original = f", the original has {feature.original:.3f}" if feature.original is not None else ""
    spread = f" ± {gap.sd:.3f}" if gap.sd else ""
    return f"{feature.name} is {feature.value:.3f}, retrained models have {gap.mean:.3f}{spread}{original}"


def confined(report: Report) -> str:
    """Say where the whole edit is in the last layer, or in biases; "" where it is not."""
    changed = [t.name for t in report.tensors if t.changed]
    modules = [t.name.rpartition(".")[0] for t in report.tensors]
    if not changed or report.buffers_changed:
        return ""
    if all(name.rpartition(".")[2] == "bias" for name in changed):
        return "Only biases were edited."
    if len({*modules, *report.left_out}) > 1 and all(name.rpartition(".")[0] == modules[-1] for name in changed):
        last = modules[-1] if report.left_out else f"the last layer, {modules[-1]},"
        return f"Only {last} was edited."
    return ""


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
        known = [each[split] for each in retrained if split in each]
        rates = [one.accuracy for one in known if one.accuracy is not None]
        if score.accuracy is not None and rates:
            gap = gap_to_retrain(score.accuracy, rates)
            yield Measure(name=f"{split} accuracy", gap=gap, resolution=1 / score.samples)
        elif score.accuracy is None and known:
            gap = gap_to_retrain(score.loss, [one.loss for one in known])
            yield Measure(name=f"{split} loss", gap=gap, resolution=0.0)
    curves = views.curves if views is not None else ()
    for mine in (curve for curve in curves if curve.model == "unlearned"):
        areas = [curve.auc for curve in curves if (curve.attack, curve.model) == (mine.attack, "retrained")]
        if len(areas) == len(retrained) > 0:
            gap, error = gap_to_retrain(mine.auc, areas), NORMAL_QUANTILE * mine.guessing_error
            # The samples are the same for all models, so their error counts only where the models do not differ.
            resolution = error if gap.sds is None else 0.0
            yield Measure(name=f"AUC of the {mine.attack} attack", gap=gap, resolution=resolution)


def _nothing(report: Report) -> str:
    remark = " ".join(report.remarks) or "no weight met the method's condition; it gave no other reason."
    if not report.size:
        return f"No edit was made: {remark}"
    return f"The edit did nothing: 0 of {report.size} weights changed, because {remark}"


def _chance(views: PlotData | None) -> str:
    if views is None or not views.classes:
        return ""
    return f" Guessing among {len(views.classes)} classes gives about {1 / len(views.classes):.3f}."


def _without_reference(
    retrained: Sequence[Scores],
    before: Scores,
    after: Scores,
    features: Sequence[FeatureMeasure],
    views: PlotData | None,
) -> str:
    rates = _rates(before, after)
    why = "Nothing to compare with the retrained models" if retrained else "No retrained model at hand"
    measured = f" Measured: {_texts(rates)}." if rates else ""
    said = f"{why}, so it is unknown whether this is like retraining.{measured}"
    forgotten, unseen = (after[s].accuracy if s in after else None for s in ("forget-train", "forget-test"))
    if forgotten is not None and unseen is not None:
        said += f" Accuracy on forgotten samples is {forgotten:.3f}, on unseen ones of their kind {unseen:.3f}."
    attacks = {c.model: c for c in (views.curves if views is not None else ()) if c.attack == "loss"}
    if "unlearned" in attacks:
        mine, error = attacks["unlearned"], NORMAL_QUANTILE * attacks["unlearned"].guessing_error
        said += f" The loss attack tells forgotten from unseen samples of their kind with an AUC of {mine.auc:.3f}"
        said += f", in the original of {attacks['original'].auc:.3f}" if "original" in attacks else ""
        said += f"; guessing has 0.5 ± {error:.3f}."
    for feature in features:
        if feature.original is not None:
            same = abs(feature.value - feature.original) <= feature.error
            beside = "within sampling error of the original's" if same else "in the original"
            said += f" {feature.name} is {feature.value:.3f}, {beside} {feature.original:.3f}."
    return said


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
    return f"{worst.name} is {gap.value:.3f}, {others_have}.{rest}"


def _rates(before: Scores, after: Scores) -> dict[str, tuple[float, float]]:
    pairs = {name: (before[name].accuracy, score.accuracy) for name, score in after.items() if name in before}
    return {name: (was, now) for name, (was, now) in pairs.items() if was is not None and now is not None}


def _texts(rates: Mapping[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} accuracy {was:.3f}→{now:.3f}" for name, (was, now) in rates.items())
