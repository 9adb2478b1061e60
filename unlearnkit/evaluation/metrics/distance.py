"""How far outputs and predicted classes are from the retrained models', and how far these are from each other."""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import ClassVar, final

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import ModelOutputs, Outputs, Values, mean
from unlearnkit.evaluation.per_sample import LN2, Floats, Ints, floats, jensen_shannon, same_shape, two_predictions
from unlearnkit.utils.errors import MismatchError

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
    def between(one: Outputs, other: Outputs) -> float:
        return distance(one.probabilities, other.probabilities)

    outputs = ModelOutputs(inputs)
    return outputs.for_each_split(lambda split: outputs.against_retrained(split, split, between))


@final
@attrs.frozen(kw_only=True)
class WhereTheyGo(Metric):
    """TV = ½·Σ_c |h_u(c) − h_r(c)|, h the shares of classes that forgotten samples are predicted to be.

    ``"agreement"`` is the share of samples that model and retrained model predict alike; ``"retrained …"`` compares
    retrained models with each other.
    """

    name: ClassVar[str] = "destinations"
    traits: ClassVar[MetricTraits] = attrs.evolve(
        FRACTION,
        source="total variation: Levin et al. 2009, proposition 4.2",
        cost="one pass of each model over the forget set; one retrained model, two for the value between them",
        trust="compare it with the value between retrained models; equal shares may be of different samples",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def between(one: Outputs, other: Outputs) -> Destinations:
            return destinations(one.logits, [other.logits])

        return {
            **outputs.against_retrained("distance", "forget-train", lambda *pair: between(*pair).distance),
            **outputs.against_retrained("agreement", "forget-train", lambda *pair: between(*pair).agreement),
        }


@final
@attrs.frozen(kw_only=True, eq=False)
class Destinations:
    """How one model and retrained models predict some samples, see `destinations`."""

    counts: Ints
    retrained: Ints
    confusion: Ints
    distance: float
    agreement: float


def total_variation(one: ArrayLike | Tensor, other: ArrayLike | Tensor) -> float:
    """TV = ½·Σ_c |a_c/Σa − b_c/Σb| of two histograms (Levin, Peres and Wilmer 2009, proposition 4.2)."""
    a, b = (floats(values, what="counts", dimensions=1) for values in (one, other))
    same_shape(a, b, what="total_variation")
    if min(a.min(), b.min()) < 0 or not a.sum() or not b.sum():
        raise MismatchError("total_variation: expected counts ≥ 0, not all of them 0, saw another histogram")
    return min(float(np.abs(a / a.sum() - b / b.sum()).sum() / 2), 1.0)


def destinations(logits: ArrayLike | Tensor, retrained: Sequence[ArrayLike | Tensor]) -> Destinations:
    """Count the predictions of a model, and compare them with those of retrained models, by logits (n, classes).

    The result has ``counts`` of the model's predictions, shape (classes,); ``retrained``, the same of each retrained
    model; ``confusion[i, j]``, how often a retrained model predicts class i and the model class j, in all;
    ``distance``, the mean total variation; and ``agreement``, the share predicted alike.

    Example:
        >>> found = destinations([[1, 0, 0], [0, 1, 0]], [[[1, 0, 0], [0, 0, 1]]])
        >>> found.counts.tolist(), found.retrained.tolist(), found.distance, found.agreement
        ([1, 1, 0], [[1, 0, 1]], 0.5, 0.5)
    """
    z = floats(logits, what="logits", dimensions=2)
    others = [floats(known, what="logits of a retrained model", dimensions=2) for known in retrained]
    if not others:
        raise MismatchError("destinations: expected at least one retrained model, saw none")
    for known in others:
        same_shape(z, known, what="destinations")
    classes, mine = z.shape[1], z.argmax(axis=1)
    theirs = [known.argmax(axis=1) for known in others]
    pairs = np.concatenate(theirs) * classes + np.tile(mine, len(theirs))
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    counts, *known_counts = (np.bincount(labels, minlength=classes) for labels in (mine, *theirs))
    return Destinations(
        counts=counts,
        retrained=np.stack(known_counts),
        confusion=confusion,
        distance=mean(total_variation(counts, known) for known in known_counts),
        agreement=float(np.trace(confusion) / confusion.sum()),
    )
