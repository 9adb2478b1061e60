"""How far a model's outputs are from the retrained models', beside how far these are from each other."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations
from math import sqrt
from typing import ClassVar, final

import attrs
import torch

from unlearnkit.evaluation.activation import activation_distance
from unlearnkit.evaluation.arrays import Floats
from unlearnkit.evaluation.divergence import LN2, jensen_shannon
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.metrics.model_outputs import SPLITS, ModelOutputs, Values, answer
from unlearnkit.evaluation.outputs import mean

Between = Callable[[Floats, Floats], float]
_ROUNDING = torch.finfo(torch.float32).eps
_TRUST = "read it against the value between retrained models: training seeds alone move outputs"
_COST = "one pass of each model over each split; one retrained model, two for the value beside it"


@final
@attrs.frozen(kw_only=True)
class ActivationDistance(Metric):
    """Mean ‖p_u − p_r‖₂ of softmax outputs, averaged over the retrained models.

    ``"SPLIT"`` is the model's, ``"original SPLIT"`` the original's, ``"retrained SPLIT"`` the mean over pairs of
    retrained models: nearer than that no model can be expected. See `unlearnkit.evaluation.activation`.
    """

    name: ClassVar[str] = "activation-distance"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=sqrt(2) + _ROUNDING,
        unit="L2 of probabilities",
        source="Golatkar et al. 2021; Chundawat et al. 2023",
        cost=_COST,
        trust=_TRUST,
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure it on each split; see `unlearnkit.Metric.measure`."""
        return _distances(inputs, activation_distance)


@final
@attrs.frozen(kw_only=True)
class JensenShannonToRetrained(Metric):
    """Mean JS(p_u, p_r) of softmax outputs, averaged over samples and over the retrained models.

    Names as in `ActivationDistance`. See `unlearnkit.evaluation.divergence.jensen_shannon`.
    """

    name: ClassVar[str] = "js-divergence"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0, high=LN2, unit="nats", source="Lin 1991, equation 4.1", cost=_COST, trust=_TRUST
    )

    def measure(self, inputs: EvaluationInputs) -> Mapping[str, float | NotApplicable | None]:
        """Measure it on each split; see `unlearnkit.Metric.measure`."""
        return _distances(inputs, lambda p, q: min(mean(jensen_shannon(p, q)), LN2))


def _distances(inputs: EvaluationInputs, between: Between) -> Values:
    sheet = ModelOutputs(inputs)
    values: Values = {}
    for split in sheet.splits or SPLITS:
        for prefix in sheet.named:
            values[f"{prefix}{split}"] = answer(partial(_to_retrained, sheet, prefix, split, between))
        values[f"retrained {split}"] = answer(partial(_among_retrained, sheet, split, between))
    return values


def _to_retrained(sheet: ModelOutputs, prefix: str, split: str, between: Between) -> float:
    mine, known = sheet.of(sheet.named[prefix], split).probabilities, sheet.retrained()
    return mean(between(mine, sheet.of(model, split).probabilities) for model in known)


def _among_retrained(sheet: ModelOutputs, split: str, between: Between) -> float:
    known = [sheet.of(model, split).probabilities for model in sheet.retrained(at_least=2)]
    return mean(between(p, q) for p, q in combinations(known, 2))
