"""The sections about samples: confidences, attacks, and predictions for forgotten samples."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from unlearnkit.evaluation.plot_data import BINS, Histogram, PlotData, RocCurve
from unlearnkit.reporting.page.parts import Picture, Section, Table, number
from unlearnkit.reporting.plots import confidence_histogram, destinations, roc_curves
from unlearnkit.reporting.plots.sample_plots import destination_shares
from unlearnkit.reporting.record import RunRecord

_MODELS = ("original", "unlearned", "retrained")
_NOT_TAKEN = "This was not measured: evaluation.page was false, no edit was made, or an older version wrote the record."


def confidences(record: RunRecord) -> Section:
    """Compare forgotten with unseen samples."""
    views = record.views
    if views is None or not views.histograms:
        return Section(words=(_why(views, "histograms"),))
    pictures = tuple(_histogram(views.histograms, m) for m in _MODELS if any(h.model == m for h in views.histograms))
    intro = (
        "A model that forgot treats forgotten samples as if it had never seen them: the two lines of the unlearned "
        "model should look like those of a retrained model."
    )
    words = (intro, *_missing(views))
    return Section(words=words, pictures=pictures)


def attacks(record: RunRecord) -> Section:
    """Show the ROC curves."""
    views = record.views
    if views is None:
        return Section(words=(_NOT_TAKEN,))
    names = [*dict.fromkeys(curve.attack for curve in views.curves if curve.model == "unlearned")]
    reasons = [f"{what}: {why}." for what, why in views.reasons.items() if " attack, " in what]
    intro = (
        "Each attack tries to tell forgotten from unseen samples. The goal is an area under the curve (AUC) near that "
        "of the retrained models. Above it, the attack still finds the forgotten samples; below it, they are treated "
        "worse than unseen samples. A low AUC is no proof: a stronger attack may find more."
    )
    words = (*([intro] if names else ()), *reasons) or ("There is no attack to show.",)
    return Section(words=words, pictures=tuple(_roc(views.curves, a) for a in names))


def where(record: RunRecord) -> Section:
    """Show the predictions for forgotten samples."""
    views = record.views
    if views is None or not views.destinations:
        return Section(words=(_why(views, "destinations"),))
    models = [d for d in views.destinations if d.model != "label"]
    names, shares = destination_shares(models, views.classes)
    total = {d.model: sum(d.counts) for d in views.destinations}
    rows = tuple(
        (name, *(str(d.counts[i]) for d in views.destinations))
        for i, name in enumerate(views.classes)
        if any(d.counts[i] for d in views.destinations)
    )
    header = ("class", *(f"{d.model} ({total[d.model]})" for d in views.destinations))
    said = "; ".join(f"{model}: mostly {names[int(np.argmax(values))]}" for model, values in shares.items())
    picture = Picture(
        name="destinations",
        title="Predictions for forgotten samples",
        caption="Training samples of the forget set. Retrained models are summed.",
        alternative=f"Bars of the share of forgotten samples per predicted class. {said}.",
        draw=partial(destinations, found=models, classes=views.classes),
        height=0.9 + 0.2 * (len(models) + 0.6) * len(names),
        table=Table(caption="Samples per predicted class", header=header, rows=rows),
    )
    return Section(words=_missing(views), pictures=(picture,))


def _why(views: PlotData | None, what: str) -> str:
    return _NOT_TAKEN if views is None else f"There is nothing to show: {views.reasons.get(what, 'no reason given')}."


def _missing(views: PlotData) -> tuple[str, ...]:
    reason = views.reasons.get("retrained")
    return (f"The retrained model is missing: {reason}.",) if reason else ()


def _histogram(histograms: Sequence[Histogram], model: str) -> Picture:
    mine = [h for h in histograms if h.model == model]
    edges = np.linspace(0, 1, BINS + 1)
    rows = tuple(
        (f"{edges[i]:.2f} – {edges[i + 1]:.2f}", *(str(h.counts[i]) for h in mine))
        for i in range(BINS)
        if any(h.counts[i] for h in mine)
    )
    middles = (edges[1:] + edges[:-1]) / 2
    said = ", ".join(f"{h.samples} samples {float(np.dot(h.shares, middles)):.2f} on average" for h in mine)
    return Picture(
        name=f"confidence-{model}",
        title=f"Confidence of the {model} model",
        caption="The model's confidence in the right label.",
        alternative=f"Histogram of the probability of the label: {said}.",
        draw=partial(confidence_histogram, histograms=mine, model=model),
        height=2.9,
        table=Table(caption="Samples per bin", header=("probability", *(h.samples for h in mine)), rows=rows),
    )


def _roc(curves: Sequence[RocCurve], attack: str) -> Picture:
    mine = [curve for curve in curves if curve.attack == attack]
    rows = tuple((curve.model, number(curve.auc)) for curve in mine)
    return Picture(
        name=f"roc-{attack.lower()}",
        title=f"The {attack} attack",
        caption="True against false positives; the legend has the AUC of each curve.",
        alternative=f"ROC curves of the {attack} attack. AUC: {', '.join(f'{m} {auc}' for m, auc in rows)}.",
        draw=partial(roc_curves, curves=mine, attack=attack),
        height=4.6,
        table=Table(caption="Area under the curve", header=("model", "AUC"), rows=rows),
    )
