"""What pictures of an edit are drawn from: counts and curves, and no sample among them."""

from collections.abc import Mapping
from math import sqrt
from typing import final

import attrs
import numpy as np
from numpy.typing import ArrayLike

from unlearnkit.evaluation.arrays import floats
from unlearnkit.evaluation.membership import attack_success

BINS = 20
"""How many equal bins the confidences 0 … 1 are counted in."""
POINTS = 50
"""How many points of an ROC curve are kept at most; the area is that of all of them."""
_DIGITS = 4


@final
@attrs.frozen(kw_only=True)
class Histogram:
    """How often the probability of the label falls into each of 20 equal bins from 0 to 1.

    Attributes:
        model: ``"original"``, ``"unlearned"`` or ``"retrained"`` (all retrained models together).
        samples: ``"forgotten"`` or ``"unseen"``.
        counts: Samples per bin, the lowest confidence first.

    Example:
        >>> Histogram.of([0.0, 0.01, 1.0], model="original", samples="unseen").counts[::19]
        (2, 1)
    """

    model: str
    samples: str
    counts: tuple[int, ...]

    @classmethod
    def of(cls, confidences: ArrayLike, *, model: str, samples: str) -> "Histogram":
        """Count.

        Args:
            confidences: Probabilities of the labels, shape (n,), 0 … 1.
            model: Whose.
            samples: Which.

        Returns:
            The histogram.
        """
        counts, _ = np.histogram(floats(confidences, what="confidences", dimensions=1), bins=BINS, range=(0, 1))
        return cls(model=model, samples=samples, counts=tuple(map(int, counts)))

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the counts as shares of all samples."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)


@final
@attrs.frozen(kw_only=True)
class RocCurve:
    """How an attack's true positives grow with its false ones.

    Attributes:
        attack: Its name: ``"loss"``, ``"entropy"``, ``"RMIA"``.
        model: ``"original"``, ``"unlearned"`` or ``"retrained"``.
        auc: Area under the whole curve, 0 … 1; ½ is guessing.
        fpr: False-positive rates, rising from 0 to 1; at most 50 points.
        tpr: True-positive rates at these.
        members: How many forgotten samples were scored.
        nonmembers: How many unseen ones.

    Example:
        >>> curve = RocCurve.of([3.0, 2.0], [1.0, 2.0], attack="loss", model="original")
        >>> curve.auc, curve.fpr[-1], curve.tpr[-1]
        (0.875, 1.0, 1.0)
    """

    attack: str
    model: str
    auc: float
    fpr: tuple[float, ...]
    tpr: tuple[float, ...]
    members: int = 0
    nonmembers: int = 0

    @classmethod
    def of(cls, members: ArrayLike, nonmembers: ArrayLike, *, attack: str, model: str) -> "RocCurve":
        """Draw the curve of some scores.

        Args:
            members: Scores of forgotten samples; higher means "member".
            nonmembers: Scores of unseen samples.
            attack: Its name.
            model: Which model was attacked.

        Returns:
            The curve, thinned out.
        """
        from sklearn.metrics import roc_curve  # noqa: PLC0415 - it takes seconds to import

        truth = np.repeat([1, 0], [np.size(members), np.size(nonmembers)])
        fpr, tpr, _ = roc_curve(truth, np.concatenate([np.asarray(members), np.asarray(nonmembers)]))
        kept = np.unique(np.linspace(0, len(fpr) - 1, min(len(fpr), POINTS)).round().astype(int))
        return cls(
            attack=attack,
            model=model,
            auc=attack_success(members, nonmembers).auc,
            fpr=tuple(fpr[kept].round(_DIGITS).tolist()),
            tpr=tuple(tpr[kept].round(_DIGITS).tolist()),
            members=np.size(members),
            nonmembers=np.size(nonmembers),
        )

    @property
    def guessing_error(self) -> float:
        """Return the standard error of the area of an attack that only guesses: √((m + n + 1)/(12·m·n)).

        Source: Hanley and McNeil 1982, the variance of the Mann-Whitney statistic under the null; 0 where the numbers
        of samples are not known.
        """
        m, n = self.members, self.nonmembers
        return sqrt((m + n + 1) / (12 * m * n)) if m and n else 0.0


@final
@attrs.frozen(kw_only=True)
class Destination:
    """Which classes the forgotten samples are predicted as.

    Attributes:
        model: ``"label"`` (what they are), ``"original"``, ``"unlearned"`` or ``"retrained"`` (all of them together).
        counts: Samples per class.
    """

    model: str
    counts: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the counts as shares of all samples."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)


@final
@attrs.frozen(kw_only=True)
class Views:
    """Everything that a page draws and that is not a score.

    Attributes:
        classes: Names of the classes, in the order of the logits.
        histograms: Confidences of forgotten and of unseen samples.
        curves: ROC curves of the attacks; one for each retrained model.
        destinations: Where forgotten samples go.
        samples: Split to how many of its samples were looked at.
        reasons: What is missing to why.
    """

    classes: tuple[str, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    curves: tuple[RocCurve, ...] = ()
    destinations: tuple[Destination, ...] = ()
    samples: Mapping[str, int] = attrs.field(factory=dict)
    reasons: Mapping[str, str] = attrs.field(factory=dict)
