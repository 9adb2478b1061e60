"""Forget accuracy after a round trip of the weights through INT8 and INT4."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, final

import attrs
from torch import nn

from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import ModelOutputs, Values, beside
from unlearnkit.evaluation.outputs import outputs_of
from unlearnkit.evaluation.quantisation import round_trip

BITS = {"INT8": 8, "INT4": 4}


@final
@attrs.frozen(kw_only=True)
class Quantised(Metric):
    """Accuracy with weights s_c·round(w/s_c), s_c = max|w_c|/(2^(b−1) − 1): does rounding undo the forgetting?

    ``"INT8 SPLIT"`` and ``"INT4 SPLIT"`` on the forget set and on retained test data, beside ``"float SPLIT"`` without
    rounding; of the model, the original and the mean of the retrained models. See
    `unlearnkit.evaluation.quantisation.round_trip`.
    """

    name: ClassVar[str] = "quantisation"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="Zhang et al. 2025 (Catastrophic Failure of LLM Unlearning via Quantization); Nagel et al. 2021",
        cost="two copies of each model, and a pass of each over two splits",
        trust="weights alone are rounded; where INT4 ruins retain accuracy, its forget accuracy says nothing",
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Round, and measure again; see `unlearnkit.Metric.measure`."""
        sheet = ModelOutputs(inputs)
        values: Values = {}
        for split in ("forget-train", "retain-test"):
            values |= beside(sheet, f"float {split}", partial(_accuracy, sheet, split))
            for name, bits in BITS.items():
                values |= beside(sheet, f"{name} {split}", partial(_rounded, sheet, inputs, split, bits))
        return values


def _accuracy(sheet: ModelOutputs, split: str, model: nn.Module) -> float:
    return sheet.of(model, split).accuracy


def _rounded(sheet: ModelOutputs, inputs: EvaluationInputs, split: str, bits: int, model: nn.Module) -> float:
    sheet.of(model, split)  # says why, where there is no such split or no classification
    return outputs_of(round_trip(model, bits=bits), inputs.splits[split], objective=inputs.objective).accuracy
