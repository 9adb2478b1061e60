"""The gap to retraining: per split, in standard deviations of retrained models, and Tug-of-War over three splits."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, final

import attrs
import numpy as np

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.model_outputs import ModelOutputs, Values, answer, answers, mean
from unlearnkit.evaluation.per_sample import floats
from unlearnkit.utils.errors import MismatchError

ENOUGH = 3  # retrained models that a standard deviation needs at least


@final
@attrs.frozen(kw_only=True)
class GapToRetrain(Metric):
    """(a_u − mean a_r)/sd a_r on each split: accuracy against at least three retrained models, two-sided.

    ``"SPLIT"`` is in standard deviations, ``"SPLIT difference"`` in accuracy. The goal is 0: too low on the forget set
    is as bad as too high.
    """

    name: ClassVar[str] = "gap-to-retrain"
    traits: ClassVar[MetricTraits] = MetricTraits(
        unit="standard deviations of retrained models",
        source="z-score",
        cost="one pass of each model over each split; three retrained models",
        trust="the deviation covers training seeds only, and from three models it is rough",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def gap(split: str) -> tuple[float | NotApplicable, float | None]:
            retrained = [outputs.of(model, split).accuracy for model in outputs.retrained()]
            found = gap_to_retrain(outputs.of(inputs.model, split).accuracy, retrained)
            return NotApplicable(found.reason) if found.sds is None else found.sds, found.delta

        return outputs.for_each_split(lambda split: answers((split, f"{split} difference"), partial(gap, split)))


@final
@attrs.frozen(kw_only=True)
class TugOfWar(Metric):
    """ToW = Π (1 − |a_u − mean a_r|) over forget set, retain set and retained test data."""

    name: ClassVar[str] = "tug-of-war"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        better="higher",
        source="Zhao et al. 2024, ToW",
        cost="one pass of each model over three splits; one retrained model",
        trust="accuracies only: a model that hides what it knows can score 1",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def of(prefix: str) -> float:
            splits = ("forget-train", "retain-train", "retain-test")
            retrained = {s: mean(outputs.of(model, s).accuracy for model in outputs.retrained()) for s in splits}
            return tug_of_war({s: outputs.of(outputs.named[prefix], s).accuracy for s in splits}, retrained)

        return {f"{prefix}ToW": answer(partial(of, prefix)) for prefix in outputs.named}


@final
@attrs.frozen(kw_only=True)
class Gap:
    """How an unlearned model's value lies among those of retrained models; see `gap_to_retrain`."""

    value: float
    mean: float | None = None
    sd: float | None = None
    models: int = 0
    delta: float | None = None
    sds: float | None = None
    reason: str = ""


def gap_to_retrain(value: float, retrained: Sequence[float]) -> Gap:
    """Compare a number of the unlearned model, any unit, with that of each retrained model: (v − mean(r))/sd(r).

    Forget accuracy 0 is no success where retrained models have 0.72. The result has ``mean`` and ``sd`` (over n − 1) of
    the retrained models, ``delta`` = value − mean, and ``sds`` = delta/sd: None with fewer than three models, or equal
    values, and ``reason`` says why.

    Source: the z-score; that "close to retrained" and not "low" is the goal: Chundawat et al. 2023; Triantafillou et
    al. 2024 (Are we making progress in unlearning?).

    Example:
        >>> gap = gap_to_retrain(0.0, [0.70, 0.72, 0.74])
        >>> round(gap.delta, 3), round(gap.sds, 3)
        (-0.72, -36.0)
        >>> gap_to_retrain(0.0, [0.72]).reason
        'a standard deviation needs at least 3 retrained models, saw 1'
    """
    value = float(floats([value], what="value", dimensions=1)[0])
    if not len(retrained):
        return Gap(value=value, reason="no retrained model at hand")
    known = floats(retrained, what="retrained", dimensions=1)
    mean, count = float(known.mean()), len(known)
    delta = value - mean
    found = Gap(value=value, mean=mean, models=count, delta=delta)
    if count < ENOUGH:
        why = f"a standard deviation needs at least {ENOUGH} retrained models, saw {count}"
        return attrs.evolve(found, reason=why)
    if np.ptp(known) == 0:  # their sd can be above 0, by a rounded mean
        why = f"all {count} retrained models have the same value: the gap has no unit"
        return attrs.evolve(found, sd=0.0, reason=why)
    sd = float(known.std(ddof=1))
    return attrs.evolve(found, sd=sd, sds=delta / sd)


def tug_of_war(unlearned: Mapping[str, float], retrained: Mapping[str, float]) -> float:
    """Return ToW = Π_s (1 − |a_u(s) − a_r(s)|) over the splits s; a is accuracy (Zhao et al. 2024)."""
    if not unlearned or unlearned.keys() != retrained.keys():
        raise MismatchError(f"tug_of_war: expected the same splits twice, saw {[*unlearned]} and {[*retrained]}")
    both = floats([[*unlearned.values()], [retrained[name] for name in unlearned]], what="accuracies", dimensions=2)
    if both.min() < 0 or both.max() > 1:
        raise MismatchError(f"tug_of_war: expected accuracies from 0 to 1, saw {both.min():g} to {both.max():g}")
    return float(np.prod(1 - np.abs(both[0] - both[1])))
