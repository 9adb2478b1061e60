"""Whether forgotten samples can be told from unseen ones: confidences, and ROC curves of attacks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation.plot_data import BINS, Histogram, RocCurve
from unlearnkit.reporting.plots.style import LOOKS, OTHER, SAMPLES, legend_above


def confidence_histogram(axes: Axes, histograms: Sequence[Histogram], *, model: str = "unlearned") -> Axes:
    """Draw how sure a model is of the label: of forgotten samples, and of samples that it never saw.

    Args:
        axes: Where to.
        histograms: Those of the model are drawn.
        model: ``"original"``, ``"unlearned"`` or ``"retrained"``.

    Returns:
        The same axes.

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

    Args:
        axes: Where to.
        curves: Those of the attack are drawn; of several retrained models each one, with one entry in the legend.
        attack: Its name.

    Returns:
        The same axes.

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
