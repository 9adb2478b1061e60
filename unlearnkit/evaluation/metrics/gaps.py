"""The gap to retraining by accuracy: per split in standard deviations, and Tug-of-War."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, final

import attrs

from unlearnkit.evaluation.gap import gap_to_retrain
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import SPLITS, ModelOutputs, Values, answer
from unlearnkit.evaluation.outputs import InapplicableError, mean
from unlearnkit.evaluation.tug_of_war import tug_of_war

TUG = ("forget-train", "retain-train", "retain-test")
"""The splits of Tug-of-War: forget set, retain set, and test data of what is retained."""


@final
@attrs.frozen(kw_only=True)
class GapToRetrain(Metric):
    """(a_u − mean a_r)/sd a_r on each split: accuracy against at least three retrained models, two-sided.

    ``"SPLIT"`` is in standard deviations, ``"SPLIT difference"`` in accuracy; 0 is as good as retraining, and too low
    on the forget set is as bad as too high. See `unlearnkit.evaluation.gap.gap_to_retrain`.
    """

    name: ClassVar[str] = "gap-to-retrain"
    traits: ClassVar[MetricTraits] = MetricTraits(
        better="near retrained",
        unit="standard deviations of retrained models",
        source="z-score",
        cost="one pass of each model over each split; three retrained models",
        trust="the deviation covers training seeds only, and from three models it is rough",
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure the gaps; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        values: Values = {}
        for split in sheet.splits or SPLITS:
            values[split] = answer(partial(_sds, sheet, inputs, split))
            values[f"{split} difference"] = answer(partial(_delta, sheet, inputs, split))
        return values


def _sds(sheet: ModelOutputs, inputs: EvaluationInputs, split: str) -> float:
    known = [sheet.of(model, split).accuracy for model in sheet.retrained()]
    gap = gap_to_retrain(sheet.of(inputs.model, split).accuracy, known)
    if gap.sds is None:
        raise InapplicableError(gap.reason)
    return gap.sds


def _delta(sheet: ModelOutputs, inputs: EvaluationInputs, split: str) -> float:
    known = mean(sheet.of(model, split).accuracy for model in sheet.retrained())
    return sheet.of(inputs.model, split).accuracy - known


@final
@attrs.frozen(kw_only=True)
class TugOfWar(Metric):
    """ToW = Π (1 − |a_u − mean a_r|) over forget set, retain set and retained test data.

    See `unlearnkit.evaluation.tug_of_war.tug_of_war`.
    """

    name: ClassVar[str] = "tug-of-war"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        better="higher",
        unit="fraction",
        source="Zhao et al. 2024, ToW",
        cost="one pass of each model over three splits; one retrained model",
        trust="accuracies only: a model that hides what it knows can score 1",
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure it for the model and for the original; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)

        def of(prefix: str) -> float:
            known = {s: mean(sheet.of(model, s).accuracy for model in sheet.retrained()) for s in TUG}
            return tug_of_war({s: sheet.of(sheet.named[prefix], s).accuracy for s in TUG}, known)

        return {f"{prefix}ToW": answer(partial(of, prefix)) for prefix in sheet.named}
