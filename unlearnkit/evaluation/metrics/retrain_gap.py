"""How far a model is from retrained models, and these from each other: in accuracy, outputs and predicted classes."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt
from typing import ClassVar, final

import attrs
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.metric import FRACTION, EvaluationInputs, Metric, MetricTraits, NotApplicable
from unlearnkit.evaluation.model_outputs import ModelOutputs, Outputs, Values, answer, answers, mean
from unlearnkit.evaluation.per_sample import LN2, Floats, Ints, floats, jensen_shannon, same_shape, two_predictions
from unlearnkit.utils.errors import MismatchError

ENOUGH = 3  # retrained models that a standard deviation needs at least
_ROUNDING = torch.finfo(torch.float32).eps
_TRUST = "compare it with the value between retrained models: training seeds alone change outputs"
_COST = "one pass of each model over each split; one retrained model, two for the value between them"


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

    The result has ``mean`` and ``sd`` (over n − 1) of the retrained models, ``delta`` = value − mean, and ``sds`` =
    delta/sd: None with fewer than three models, or equal values, and ``reason`` says why.

    Source: the z-score; "close to retrained", not "low", is the goal: Chundawat et al. 2023; Triantafillou et al. 2024.

    Examples:
        >>> gap = gap_to_retrain(0.0, [0.70, 0.72, 0.74])
        >>> round(gap.delta, 3), round(gap.sds, 3)
        (-0.72, -36.0)
    """
    value = float(floats([value], what="value", dimensions=1)[0])
    if not len(retrained):
        return Gap(value=value, reason="no retrained model at hand")
    known = floats(retrained, what="retrained", dimensions=1)
    mean, count = float(known.mean()), len(known)
    delta = value - mean
    found = Gap(value=value, mean=mean, models=count, delta=delta)
    if count < ENOUGH:
        return attrs.evolve(found, reason=f"a standard deviation needs at least {ENOUGH} retrained models, saw {count}")
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


def _total_variation(a: Ints, b: Ints) -> float:
    """TV = ½·Σ_c |a_c/Σa − b_c/Σb| of two histograms (Levin, Peres and Wilmer 2009, proposition 4.2)."""
    return min(float(np.abs(a / a.sum() - b / b.sum()).sum() / 2), 1.0)


def destinations(logits: ArrayLike | Tensor, retrained: Sequence[ArrayLike | Tensor]) -> Destinations:
    """Count the predictions of a model, and compare them with those of retrained models, by logits (n, classes).

    The result has ``counts`` of the model's predictions, shape (classes,); ``retrained``, the same of each retrained
    model; ``confusion[i, j]``, how often a retrained model predicts class i and the model class j, in all;
    ``distance``, the mean total variation; and ``agreement``, the share predicted alike.

    Examples:
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
        distance=mean(_total_variation(counts, known) for known in known_counts),
        agreement=float(np.trace(confusion) / confusion.sum()),
    )
