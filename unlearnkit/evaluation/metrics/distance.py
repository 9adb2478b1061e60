"""How far a model's outputs are from the retrained models', compared with how far these are from each other."""

from collections.abc import Callable
from math import sqrt
from typing import ClassVar, final

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import Floats, two_predictions
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import SPLITS, ModelOutputs, Values, against_retrained, mean
from unlearnkit.evaluation.per_sample import LN2, jensen_shannon

_ROUNDING = torch.finfo(torch.float32).eps
_TRUST = "compare it with the value between retrained models: training seeds alone change outputs"
_COST = "one pass of each model over each split; one retrained model, two for the value between them"


@final
@attrs.frozen(kw_only=True)
class ActivationDistance(Metric):
    """Mean ‖p_u − p_r‖₂ of softmax outputs, averaged over the retrained models.

    ``"retrained SPLIT"`` is the mean over pairs of retrained models: no model can be expected to be nearer than that.
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

    def measure(self, inputs: EvaluationInputs) -> Values:
        return _distances(inputs, activation_distance)


@final
@attrs.frozen(kw_only=True)
class JensenShannonToRetrained(Metric):
    """Mean JS(p_u, p_r) of softmax outputs, averaged over samples and over the retrained models."""

    name: ClassVar[str] = "js-divergence"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0, high=LN2, unit="nats", source="Lin 1991, equation 4.1", cost=_COST, trust=_TRUST
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        return _distances(inputs, lambda p, q: min(mean(jensen_shannon(p, q)), LN2))


def activation_distance(p: ArrayLike | Tensor, q: ArrayLike | Tensor) -> float:
    """Return the mean over samples of ‖p − q‖₂, p and q the softmax outputs of two models: 0 … √2."""
    p, q = two_predictions(p, q, what="activation_distance")
    return float(np.linalg.norm(p - q, axis=1).mean())


def _distances(inputs: EvaluationInputs, distance: Callable[[Floats, Floats], float]) -> Values:
    outputs = ModelOutputs(inputs)
    values: Values = {}
    for split in outputs.splits or SPLITS:
        values |= against_retrained(outputs, split, split, lambda p, q: distance(p.probabilities, q.probabilities))
    return values
