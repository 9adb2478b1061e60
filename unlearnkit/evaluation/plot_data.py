"""The data of a report's plots: counts and curves of the original, edited and retrained models, and no sample."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import final

import attrs
import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from unlearnkit.evaluation.membership.attacks import (
    EntropyAttack,
    LossAttack,
    RelativeMembership,
    attack_success,
    unseen_halves,
)
from unlearnkit.evaluation.model_outputs import InapplicableError, ModelOutputs
from unlearnkit.evaluation.per_sample import floats
from unlearnkit.utils.display import counted

BINS = 20  # of equal width, from confidence 0 to 1
POINTS = 50  # kept of an ROC curve at most; its area is computed from all of them
_DIGITS = 4


@final
@attrs.frozen(kw_only=True)
class Histogram:
    """Counts of the probability of the label in 20 equal bins from 0 to 1."""

    model: str
    samples: str
    counts: tuple[int, ...]

    @classmethod
    def of(cls, confidences: ArrayLike, *, model: str, samples: str) -> "Histogram":
        """Count confidences."""
        counts, _ = np.histogram(floats(confidences, what="confidences", dimensions=1), bins=BINS, range=(0, 1))
        return cls(model=model, samples=samples, counts=tuple(counts.tolist()))


@final
@attrs.frozen(kw_only=True)
class RocCurve:
    """The true-positive rate of an attack against its false-positive rate."""

    attack: str
    model: str
    auc: float
    fpr: tuple[float, ...] = attrs.field(repr=counted)
    tpr: tuple[float, ...] = attrs.field(repr=counted)
    members: int = 0
    nonmembers: int = 0

    @classmethod
    def of(cls, members: ArrayLike, nonmembers: ArrayLike, *, attack: str, model: str) -> "RocCurve":
        """Compute the curve of some scores."""
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
        """Standard error √((m + n + 1)/(12·m·n)) of the AUC of an attack that guesses (Hanley and McNeil 1982)."""
        m, n = self.members, self.nonmembers
        return sqrt((m + n + 1) / (12 * m * n)) if m and n else 0.0


@final
@attrs.frozen(kw_only=True)
class Destination:
    """How many forgotten samples a model predicts as each class; ``"label"`` counts their labels."""

    model: str
    counts: tuple[int, ...]


@final
@attrs.frozen(kw_only=True)
class PlotData:
    """What a report draws besides scores."""

    classes: tuple[str, ...] = attrs.field(default=(), repr=counted)
    histograms: tuple[Histogram, ...] = attrs.field(default=(), repr=counted)
    curves: tuple[RocCurve, ...] = attrs.field(default=(), repr=counted)
    destinations: tuple[Destination, ...] = attrs.field(default=(), repr=counted)
    samples: Mapping[str, int] = attrs.field(factory=dict)
    reasons: Mapping[str, str] = attrs.field(factory=dict)


def collect_plot_data(outputs: ModelOutputs, *, classes: Sequence[str] = (), seed: int = 0) -> PlotData:
    """Collect the plot data of an edited model, the original and the retrained models."""
    named = {"original": outputs.named.get("original "), "unlearned": outputs.named[""]}
    models = {name: [model] for name, model in named.items() if model is not None}
    reasons: dict[str, str] = {}
    with _reason(reasons, "retrained"):
        models["retrained"] = list(outputs.retrained())
    histograms: list[Histogram] = []
    destinations: list[Destination] = []
    curves: list[RocCurve] = []
    with _reason(reasons, "destinations"):
        destinations += _destinations(outputs, models)
    with _reason(reasons, "histograms"):
        histograms += _histograms(outputs, models, seed)
    attacks = {"loss": LossAttack, "entropy": EntropyAttack, "RMIA": RelativeMembership}
    for attack, metric in attacks.items():
        for name, group in models.items():
            with _reason(reasons, f"{attack} attack, {name}"):
                scores = [metric(seed=seed).scores(outputs, model) for model in group]
                curves += [RocCurve.of(*found, attack=attack, model=name) for found in scores]
    count = len(destinations[0].counts) if destinations else 0
    return PlotData(
        classes=tuple(classes[i] if i < len(classes) else str(i) for i in range(count)),
        histograms=tuple(histograms),
        curves=tuple(curves),
        destinations=tuple(destinations),
        samples={s: len(outputs.of(models["unlearned"][0], s)) for s in outputs.splits} if destinations else {},
        reasons=reasons,
    )


@contextmanager
def _reason(reasons: dict[str, str], what: str) -> Iterator[None]:
    try:
        yield
    except InapplicableError as reason:
        reasons[what] = str(reason)


def _destinations(outputs: ModelOutputs, models: Mapping[str, list[nn.Module]]) -> Iterator[Destination]:
    forgotten = outputs.of(models["unlearned"][0], "forget-train")
    labels = {"label": forgotten.labels}
    for name, group in models.items():
        labels[name] = np.concatenate([outputs.of(m, "forget-train").logits.argmax(axis=1) for m in group])
    for name, found in labels.items():
        counts = np.bincount(found, minlength=forgotten.logits.shape[1])
        yield Destination(model=name, counts=tuple(counts.tolist()))


def _histograms(outputs: ModelOutputs, models: Mapping[str, list[nn.Module]], seed: int) -> Iterator[Histogram]:
    for name, group in models.items():
        forgotten = [outputs.of(model, "forget-train").confidences for model in group]
        unseen = [unseen_halves(outputs, model, seed)[1].confidences for model in group]
        yield Histogram.of(np.concatenate(forgotten), model=name, samples="forgotten")
        yield Histogram.of(np.concatenate(unseen), model=name, samples="unseen")


def shares(counts: tuple[int, ...]) -> tuple[float, ...]:
    """Counts as shares of their sum."""
    total = sum(counts)
    return tuple(count / total for count in counts)
