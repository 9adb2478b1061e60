"""Loss and accuracy on every split, with intervals over samples."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit.evaluation.features import label_losses
from unlearnkit.evaluation.intervals import Interval, mean_interval, proportion_interval
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import SPLITS, ModelOutputs, Values, answer, beside
from unlearnkit.evaluation.outputs import InapplicableError, Outputs, mean
from unlearnkit.utils.options import option


@final
@attrs.frozen(kw_only=True)
class Scores(Metric):
    """Σ_i ℓ_i/n and Σ_i [ŷ_i = y_i]/n on each split: loss and accuracy, every sample weighing the same.

    ``"SPLIT loss"`` and ``"SPLIT accuracy"`` of the model, the original and the mean of the retrained models; of the
    model also ``"… low"`` and ``"… high"``, the ends of 95 % intervals over samples: Wilson's for accuracy, the
    bootstrap for loss. See `unlearnkit.evaluation.intervals`.
    """

    name: ClassVar[str] = "loss-and-accuracy"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        unit="nats; fraction",
        source="definition; Wilson 1927; Efron 1979",
        cost="one pass of each model over each split",
        trust="the intervals cover samples only: another training seed may lie outside; low forget accuracy is no goal",
    )

    seed: int = option(0, at_least=0, doc="of the bootstrap")

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure each split; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        values: Values = {}
        for split in sheet.splits or SPLITS:
            values |= beside(sheet, f"{split} accuracy", partial(_accuracy, sheet, split))
            values |= beside(sheet, f"{split} loss", partial(_loss, sheet, split))
            for name, interval in (("accuracy", self._of_accuracy), ("loss", self._of_loss)):
                values[f"{split} {name} low"] = answer(partial(_end, interval, sheet, inputs, split, "low"))
                values[f"{split} {name} high"] = answer(partial(_end, interval, sheet, inputs, split, "high"))
        return values

    def _of_accuracy(self, outputs: Outputs) -> Interval:
        return proportion_interval(outputs.logits.argmax(axis=1) == outputs.labels)

    def _of_loss(self, outputs: Outputs) -> Interval:
        if len(outputs.labels) < 2:
            raise InapplicableError("an interval of the loss needs at least 2 samples, saw 1")
        return mean_interval(label_losses(outputs.logits, outputs.labels), seed=self.seed)


def _accuracy(sheet: ModelOutputs, split: str, model: nn.Module) -> float:
    return sheet.of(model, split).accuracy


def _loss(sheet: ModelOutputs, split: str, model: nn.Module) -> float:
    outputs = sheet.of(model, split)
    return mean(label_losses(outputs.logits, outputs.labels))


def _end(
    interval: Callable[[Outputs], Interval], sheet: ModelOutputs, inputs: EvaluationInputs, split: str, end: str
) -> float:
    found: float = getattr(interval(sheet.of(inputs.model, split)), end)
    return found
