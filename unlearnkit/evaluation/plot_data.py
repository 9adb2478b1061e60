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

    Example:
        >>> Histogram.of([0.0, 0.01, 1.0], model="original", samples="unseen").counts[::19]
        (2, 1)
    """

    model: str
    samples: str
    counts: tuple[int, ...]

    @classmethod
    def of(cls, confidences: ArrayLike, *, model: str, samples: str) -> "Histogram":
        """Count."""
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
        """Draw the curve of some scores."""
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
    """Which classes the forgotten samples are predicted as."""

    model: str
    counts: tuple[int, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Return the counts as shares of all samples."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts)


@final
@attrs.frozen(kw_only=True)
class PlotData:
    """Everything that a page draws and that is not a score."""

    classes: tuple[str, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    curves: tuple[RocCurve, ...] = ()
    destinations: tuple[Destination, ...] = ()
    samples: Mapping[str, int] = attrs.field(factory=dict)
    reasons: Mapping[str, str] = attrs.field(factory=dict)
