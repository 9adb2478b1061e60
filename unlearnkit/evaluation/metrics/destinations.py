"""Which classes forgotten samples are predicted as, by the model and by retrained models."""

from collections.abc import Sequence
from typing import ClassVar, final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from unlearnkit.evaluation.arrays import Ints, floats, same_shape
from unlearnkit.evaluation.metric import EvaluationInputs, Metric, MetricTraits
from unlearnkit.evaluation.model_outputs import ModelOutputs, Outputs, Values, against_retrained
from unlearnkit.utils.errors import MismatchError


@final
@attrs.frozen(kw_only=True)
class WhereTheyGo(Metric):
    """TV = ½·Σ_c |h_u(c) − h_r(c)|, h the shares of classes that forgotten samples are predicted to be.

    ``"agreement"`` is the share of samples that model and retrained model predict alike; ``"retrained …"`` compares
    retrained models with each other.
    """

    name: ClassVar[str] = "destinations"
    traits: ClassVar[MetricTraits] = MetricTraits(
        low=0.0,
        high=1.0,
        unit="fraction",
        source="total variation: Levin et al. 2009, proposition 4.2",
        cost="one pass of each model over the forget set; one retrained model, two for the value between them",
        trust="compare it with the value between retrained models; equal shares may be of different samples",
    )

    def measure(self, inputs: EvaluationInputs) -> Values:
        outputs = ModelOutputs(inputs)

        def between(one: Outputs, other: Outputs) -> Destinations:
            return destinations(one.logits, [other.logits])

        return {
            **against_retrained(outputs, "distance", "forget-train", lambda *pair: between(*pair).distance),
            **against_retrained(outputs, "agreement", "forget-train", lambda *pair: between(*pair).agreement),
        }


@final
@attrs.frozen(kw_only=True, eq=False)
class Destinations:
    """How one model and retrained models predict some samples, see `destinations`."""

    counts: Ints
    retrained: Ints
    confusion: Ints

    @property
    def distance(self) -> float:
        """Mean total variation between the model's predictions and a retrained model's, 0 … 1."""
        return float(np.mean([total_variation(self.counts, known) for known in self.retrained]))

    @property
    def agreement(self) -> float:
        """Share of samples that both predict alike, 0 … 1, averaged over the retrained models."""
        return float(np.trace(self.confusion) / self.confusion.sum())


def total_variation(one: ArrayLike | Tensor, other: ArrayLike | Tensor) -> float:
    """TV = ½·Σ_c |a_c/Σa − b_c/Σb| of two histograms (Levin, Peres and Wilmer 2009, proposition 4.2)."""
    a, b = (floats(values, what="counts", dimensions=1) for values in (one, other))
    same_shape(a, b, what="total_variation")
    if min(a.min(), b.min()) < 0 or not a.sum() or not b.sum():
        raise MismatchError("total_variation: expected counts ≥ 0, not all of them 0, saw another histogram")
    return min(float(np.abs(a / a.sum() - b / b.sum()).sum() / 2), 1.0)


def destinations(logits: ArrayLike | Tensor, retrained: Sequence[ArrayLike | Tensor]) -> Destinations:
    """Count the predictions of a model, and compare them with those of retrained models.

    Args:
        logits: Of the model, shape (n, classes).
        retrained: The same samples' logits of each retrained model, at least one.

    Returns:
        ``counts`` of the model's predictions, shape (classes,); ``retrained``, the same for each retrained model;
        ``confusion[i, j]``, how often a retrained model predicts class i and the model class j, summed over the
        retrained models; ``distance``, the mean total variation; and ``agreement``, the share predicted alike.

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
    return Destinations(
        counts=np.bincount(mine, minlength=classes),
        retrained=np.stack([np.bincount(known, minlength=classes) for known in theirs]),
        confusion=np.bincount(pairs, minlength=classes * classes).reshape(classes, classes),
    )
