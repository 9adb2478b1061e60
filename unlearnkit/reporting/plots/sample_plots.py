"""Plots about samples: confidences, ROC curves of attacks, and predictions for forgotten samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation.plot_data import BINS, Destination, Histogram, RocCurve
from unlearnkit.reporting.plots.style import LOOKS, OTHER, SAMPLES, bars, legend_above

MOST_CLASSES = 10
"""The largest number of classes in a plot; the rest is summed as "others"."""


def confidence_histogram(axes: Axes, histograms: Sequence[Histogram], *, model: str = "unlearned") -> Axes:
    """Draw a model's confidence in the label, for forgotten samples and for samples that it never saw.

    The model is ``"original"``, ``"unlearned"`` or ``"retrained"``.

    Example:
        >>> from matplotlib.figure import Figure
        >>> counts = Histogram.of([0.1, 0.9], model="unlearned", samples="unseen")
        >>> confidence_histogram(Figure().subplots(), [counts]).get_title(loc="left")
        'unlearned'
    """
    edges = np.linspace(0, 1, BINS + 1)
    for histogram in histograms:
        if histogram.model == model:
            look = SAMPLES.get(histogram.samples, OTHER)
            label = f"{histogram.samples} ({sum(histogram.counts)})"
            axes.stairs(histogram.shares, edges, color=look.colour, linestyle=look.line, linewidth=2, label=label)
    axes.set_title(model, loc="left", fontsize="medium")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.04)
    axes.set_xlabel("probability of the label")
    axes.set_ylabel("share of samples")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center")
    return axes


def roc_curves(axes: Axes, curves: Sequence[RocCurve], *, attack: str) -> Axes:
    """Draw an attack's true positives against its false ones, with the area under each curve.

    Several retrained models have a curve each and one entry in the legend.

    Example:
        >>> from matplotlib.figure import Figure
        >>> curve = RocCurve.of([1.0, 2.0], [0.0, 1.0], attack="loss", model="unlearned")
        >>> axes = roc_curves(Figure().subplots(), [curve], attack="loss")
        >>> axes.get_legend().get_texts()[1].get_text()
        'unlearned 0.875'
    """
    axes.plot([0, 1], [0, 1], color=OTHER.colour, linestyle=":", linewidth=1, label="guessing 0.5")
    for model, look in LOOKS.items():
        mine = [curve for curve in curves if (curve.attack, curve.model) == (attack, model)]
        label = f"{model} {np.mean([curve.auc for curve in mine]):.3f}" if mine else ""
        for curve in mine:
            axes.plot(
                curve.fpr,
                curve.tpr,
                color=look.colour,
                linestyle=look.line,
                linewidth=2 if len(mine) == 1 else 1.2,
                marker=look.marker,
                markersize=4,
                markevery=0.2,
                label=label,
            )
            label = ""
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("false positives")
    axes.set_ylabel("true positives")
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    legend_above(axes, columns=2)
    return axes


def destination_shares(
    found: Sequence[Destination], classes: Sequence[str], most: int = MOST_CLASSES
) -> tuple[list[str], dict[str, list[float]]]:
    """Choose the classes that matter to any of the models, and add up the others.

    Example:
        >>> destination_shares([Destination(model="unlearned", counts=(1, 0, 3))], ["a", "b", "c"])
        (['c', 'a'], {'unlearned': [0.75, 0.25]})
    """
    largest = {i: max((d.shares[i] for d in found), default=0.0) for i in range(len(classes))}
    order = sorted((i for i in largest if largest[i] > 0), key=lambda i: -largest[i])
    kept, others = order[:most], order[most:]
    names = [classes[i] for i in kept] + (["others"] if others else [])
    shares = {
        d.model: [d.shares[i] for i in kept] + ([sum(d.shares[i] for i in others)] if others else []) for d in found
    }
    return names, shares


def destinations(axes: Axes, found: Sequence[Destination], classes: Sequence[str]) -> Axes:
    """Draw which share of the forgotten samples each model predicts as which class.

    The entry ``"label"``, the classes that the samples belong to, is not drawn.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = destinations(Figure().subplots(), [Destination(model="unlearned", counts=(1, 3))], ["cat", "dog"])
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['dog', 'cat']
    """
    names, shares = destination_shares([d for d in found if d.model != "label"], classes)
    bars(axes, names, {model: [*values] for model, values in shares.items()}, spread={})
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("share of forgotten samples")
    legend_above(axes)
    return axes
