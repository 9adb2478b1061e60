"""Plots of a run as functions, for its page and for notebooks: each draws on matplotlib axes and returns them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation.plot_data import BINS, Destination, Histogram, RocCurve, shares
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.reporting.verdict import Scores
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils.display import fewer
from unlearnkit.utils.plotting import (
    LOOKS,
    OTHER,
    Look,
    bars,
    grid,
    labelled_bars,
    layer_shares,
    legend_above,
    name_rows,
    write_number,
)

__all__ = [
    "accuracy_bars",
    "confidence_histogram",
    "destinations",
    "edited_layers",
    "roc_curves",
    "timings",
    "tuning_frontier",
]


SAMPLES = {
    "forgotten": Look(colour="#D55E00", hatch="///", line="-", marker="s"),
    "unseen": Look(colour="#0072B2", hatch="", line="--", marker="o"),
}
MOST = 24  # bars in a plot of layers
MOST_CLASSES = 10  # classes in a plot; the rest is summed as "others"


def accuracy_bars(axes: Axes, before: Scores, after: Scores, retrained: Sequence[Scores] = ()) -> Axes:
    """Draw one group of bars per split: original, unlearned, and the mean of the retrained models ± their deviation."""
    splits = [*after]
    groups = {"original": [_accuracy(before, s) for s in splits], "unlearned": [_accuracy(after, s) for s in splits]}
    spread = {}
    if retrained:
        known = [[a for each in retrained if (a := _accuracy(each, s)) is not None] for s in splits]
        groups["retrained"] = [float(np.mean(rates)) if rates else None for rates in known]
        spread["retrained"] = [float(np.std(rates, ddof=1)) if len(rates) > 1 else 0.0 for rates in known]
    return _grouped_bars(axes, splits, groups, spread=spread, unit="accuracy")


def confidence_histogram(axes: Axes, histograms: Sequence[Histogram], *, model: str = "unlearned") -> Axes:
    """Draw how sure the original, unlearned or retrained model is of the label of forgotten and of unseen samples."""
    for histogram in histograms:
        if histogram.model == model:
            look = SAMPLES.get(histogram.samples, OTHER)
            label = f"{histogram.samples} ({sum(histogram.counts)})"
            edges = np.linspace(0, 1, BINS + 1)
            axes.stairs(
                shares(histogram.counts), edges, color=look.colour, linestyle=look.line, linewidth=2, label=label
            )
    axes.set_title(model, loc="left", fontsize="medium")
    axes.set(xlim=(0, 1), ylim=(0, 1.04), xlabel="probability of the label", ylabel="share of samples")
    grid(axes, "both")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper center")
    return axes


def destinations(axes: Axes, found: Sequence[Destination], classes: Sequence[str]) -> Axes:
    """Draw which share of the forgotten samples each model predicts as which class; their labels are not drawn."""
    names, by_model = destination_shares([d for d in found if d.model != "label"], classes)
    groups: dict[str, list[float | None]] = {model: [*values] for model, values in by_model.items()}
    return _grouped_bars(axes, names, groups, spread={}, unit="share of forgotten samples")


def edited_layers(axes: Axes, report: Report, *, layers: Sequence[TensorChange] = ()) -> Axes:
    """Draw which share of the weights of each layer was changed."""
    shares = {layer.name: layer.fraction for layer in layers or layers_of(report)}
    return layer_shares(axes, shares, unit="weights changed, %")


def roc_curves(axes: Axes, curves: Sequence[RocCurve], *, attack: str) -> Axes:
    """Draw an attack's true positives against its false ones; the legend has the mean area of a model's curves."""
    axes.plot([0, 1], [0, 1], color=OTHER.colour, linestyle=":", linewidth=1, label="guessing 0.5")
    for model, look in LOOKS.items():
        mine = [curve for curve in curves if (curve.attack, curve.model) == (attack, model)]
        label = f"{model} {np.mean([curve.auc for curve in mine]):.3f}" if mine else ""
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.line, "marker": look.marker}
        width = 2 if len(mine) == 1 else 1.2
        for curve in mine:
            axes.plot(curve.fpr, curve.tpr, **style, linewidth=width, markersize=4, markevery=0.2, label=label)
            label = ""
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false positives", ylabel="true positives")
    axes.set_aspect("equal")
    grid(axes, "both")
    legend_above(axes, columns=2)
    return axes


def timings(axes: Axes, seconds: Mapping[str, float]) -> Axes:
    """Draw the wall-clock seconds of each stage."""
    found = [(stage, value, f"{value:.3g} s") for stage, value in seconds.items()]
    return labelled_bars(axes, found, LOOKS["original"], unit="seconds")


def tuning_frontier(axes: Axes, tuning: Tuning) -> Axes:
    """Draw every edit that was tried, the frontier, the chosen one, the target and the budget."""
    return tuning.plot(axes)


def layers_of(report: Report, most: int = MOST) -> tuple[TensorChange, ...]:
    """Sum tensors by the beginning of their names until there are few enough, in the order of the model."""
    found = fewer({t.name: (t.size, t.changed) for t in report.tensors}, most=most)
    return tuple(
        TensorChange(name=name, size=int(size), changed=int(changed)) for name, (size, changed) in found.items()
    )


def destination_shares(
    found: Sequence[Destination], classes: Sequence[str], most: int = MOST_CLASSES
) -> tuple[list[str], dict[str, list[float]]]:
    """Choose the classes with the largest share for any of the models, and sum the others."""
    by_model = {d.model: shares(d.counts) for d in found}
    largest = {i: max((each[i] for each in by_model.values()), default=0.0) for i in range(len(classes))}
    order = sorted((i for i in largest if largest[i] > 0), key=lambda i: -largest[i])
    groups = {classes[i]: [i] for i in order[:most]}
    if len(order) > most:
        groups["others"] = order[most:]
    return [*groups], {m: [sum(each[i] for i in group) for group in groups.values()] for m, each in by_model.items()}


def _accuracy(scores: Scores, split: str) -> float | None:
    return scores[split].accuracy if split in scores else None


def _grouped_bars(
    axes: Axes, names: list[str], groups: dict[str, list[float | None]], *, spread: dict[str, list[float]], unit: str
) -> Axes:
    height = 0.8 / max(len(groups), 1)
    for place, (model, values) in enumerate(groups.items()):
        look = LOOKS.get(model, OTHER)
        at = [i - 0.4 + (place + 0.5) * height for i in range(len(names))]
        bars(axes, at, [value or 0.0 for value in values], look, height=0.9 * height, label=model)
        for y, value, half in zip(at, values, spread.get(model, [0.0] * len(names)), strict=True):
            if value is not None:
                if half:
                    axes.errorbar(value, y, xerr=half, color=axes.xaxis.label.get_color(), capsize=2, linewidth=1)
                write_number(axes, value + half, y, f"{value:.3f}")
    name_rows(axes, names)
    axes.set(xlim=(0, 1.15), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel=unit)
    legend_above(axes)
    return axes
