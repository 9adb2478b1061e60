"""The plots of a report as functions, for the page and for notebooks: each draws on matplotlib axes and returns them.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and everything that has a colour has its own
marker or hatch too.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, final

import attrs
import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.plot_data import BINS, Destination, Histogram, RocCurve, shares
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.unlearning.report import Report, TensorChange
from unlearnkit.utils.text import percent

__all__ = [
    "accuracy_bars",
    "confidence_histogram",
    "destinations",
    "edited_layers",
    "roc_curves",
    "timings",
    "tuning_frontier",
]

Scores = Mapping[str, LossAndAccuracy]


@final
@attrs.frozen(kw_only=True)
class Look:
    """How one model is drawn in every plot."""

    colour: str
    hatch: str
    line: str
    marker: str


LOOKS = {
    "original": Look(colour="#0072B2", hatch="", line="-", marker="o"),
    "unlearned": Look(colour="#D55E00", hatch="///", line="--", marker="s"),
    "retrained": Look(colour="#009E73", hatch="|||", line="-.", marker="^"),
}
SAMPLES = {
    "forgotten": Look(colour="#D55E00", hatch="///", line="-", marker="s"),
    "unseen": Look(colour="#0072B2", hatch="", line="--", marker="o"),
}
OTHER = Look(colour="#999999", hatch="", line=":", marker=".")
LONGEST = 28  # characters of a label; the table below a plot has all of them
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
    _grid(axes, "both")
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
    found = [
        (layer.name, 100 * layer.fraction, percent(layer.fraction) if layer.changed else "0")
        for layer in layers or layers_of(report)
    ]
    return _labelled_bars(axes, found, LOOKS["unlearned"], unit="weights changed, %")


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
    _grid(axes, "both")
    _legend_above(axes, columns=2)
    return axes


def timings(axes: Axes, seconds: Mapping[str, float]) -> Axes:
    """Draw the wall-clock seconds of each stage."""
    found = [(stage, value, f"{value:.3g} s") for stage, value in seconds.items()]
    return _labelled_bars(axes, found, LOOKS["original"], unit="seconds")


def tuning_frontier(axes: Axes, tuning: Tuning) -> Axes:
    """Draw every edit that was tried, the frontier, the chosen one, the target and the budget."""
    axes.axhline(tuning.target, color=OTHER.colour, linestyle="--", linewidth=1, label="target")
    limit = tuning.original_retain - tuning.budget
    axes.axvline(limit, color=OTHER.colour, linestyle=":", linewidth=1.5, label="budget")
    if not tuning.aim_reached and tuning.budget_to_reach is not None:
        needed = tuning.original_retain - tuning.budget_to_reach
        axes.axvline(needed, color=OTHER.colour, linestyle="-.", linewidth=1.5, label="budget that reaches the target")
    tried = [(c.retain, c.forget) for c in tuning.candidates if not c.problem]
    best = sorted((c.retain, c.forget) for c in tuning.frontier)
    original = [(tuning.original_retain, tuning.original_forget)]
    chosen = [] if tuning.chosen is None else [(tuning.chosen.retain, tuning.chosen.forget)]
    kept, before, after = LOOKS["retrained"], LOOKS["original"], LOOKS["unlearned"]
    for label, points, colour, marker, line, size in (
        ("tried", tried, OTHER.colour, "x", "none", 5),
        ("frontier", best, kept.colour, kept.marker, kept.line, 6),
        ("original", original, before.colour, before.marker, "none", 8),
        ("chosen", chosen, after.colour, "*", "none", 15),
    ):
        if points or label != "chosen":
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, color=colour, marker=marker, linestyle=line, ms=size, label=label)
    axes.set(xlabel="retain accuracy", ylabel="forget accuracy", ylim=(-0.04, 1.04))
    axes.margins(x=0.06)
    _grid(axes, "both")
    _legend_above(axes)
    return axes


def layers_of(report: Report, most: int = MOST) -> tuple[TensorChange, ...]:
    """Sum tensors by the beginning of their names until there are few enough, in the order of the model."""
    deepest = max((t.name.count(".") + 1 for t in report.tensors), default=1)
    layers: tuple[TensorChange, ...] = ()
    for depth in range(deepest, 0, -1):
        size, changed = Counter[str](), Counter[str]()
        for t in report.tensors:
            name = ".".join(t.name.split(".")[:depth])
            size[name] += t.size
            changed[name] += t.changed
        layers = tuple(TensorChange(name=name, size=size[name], changed=changed[name]) for name in size)
        if len(layers) <= most:
            return layers
    kept = sorted(layers, key=lambda layer: -layer.fraction)[:most]
    return tuple(layer for layer in layers if layer in kept)


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


def plain(text: str) -> str:
    """Escape what matplotlib would read as mathematics, and shorten long labels."""
    short = text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"
    return " ".join(short.split()).replace("$", r"\$")


def _accuracy(scores: Scores, split: str) -> float | None:
    return scores[split].accuracy if split in scores else None


def _grouped_bars(
    axes: Axes, names: list[str], groups: dict[str, list[float | None]], *, spread: dict[str, list[float]], unit: str
) -> Axes:
    height = 0.8 / max(len(groups), 1)
    for place, (model, values) in enumerate(groups.items()):
        look = LOOKS.get(model, OTHER)
        at = [i - 0.4 + (place + 0.5) * height for i in range(len(names))]
        _bars(axes, at, [value or 0.0 for value in values], look, height=0.9 * height, label=model)
        for y, value, half in zip(at, values, spread.get(model, [0.0] * len(names)), strict=True):
            if value is not None:
                if half:
                    axes.errorbar(value, y, xerr=half, color=axes.xaxis.label.get_color(), capsize=2, linewidth=1)
                _number(axes, value + half, y, f"{value:.3f}")
    _name_rows(axes, names)
    axes.set(xlim=(0, 1.15), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel=unit)
    _legend_above(axes)
    return axes


def _labelled_bars(axes: Axes, found: Sequence[tuple[str, float, str]], look: Look, *, unit: str) -> Axes:
    names, values, texts = zip(*found, strict=True) if found else ((), (), ())
    _bars(axes, range(len(values)), values, look, height=0.7)
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        _number(axes, value, y, text)
    _name_rows(axes, names)
    axes.set(xlim=(0, max([*values, 0.0]) * 1.2 or 1), xlabel=unit)
    return axes


def _bars(
    axes: Axes, at: Sequence[float], values: Sequence[float], look: Look, *, height: float, label: str = ""
) -> None:
    axes.barh(
        at, values, height=height, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, label=label
    )


def _number(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    _grid(axes, "x")


def _grid(axes: Axes, axis: Literal["both", "x"]) -> None:
    axes.grid(visible=True, axis=axis)
    axes.set_axisbelow(True)


def _legend_above(axes: Axes, columns: int = 3) -> None:
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        borderpad=0.1,
        columnspacing=1.2,
        handlelength=1.6,
        handletextpad=0.5,
        fontsize="small",
    )
