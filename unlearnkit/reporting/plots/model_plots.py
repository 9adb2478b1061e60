"""Plots about an edited model: accuracy, edited layers, the search for the edit, and time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.reporting.plots.style import LOOKS, OTHER, bars, labelled_bars, legend_above
from unlearnkit.unlearning.report import Report, TensorChange

MOST = 24
"""The largest number of bars in a plot of layers."""

Scores = Mapping[str, LossAndAccuracy]


def accuracy_bars(axes: Axes, before: Scores, after: Scores, retrained: Sequence[Scores] = ()) -> Axes:
    """Draw one group of bars per split: original, unlearned, and the mean of the retrained models ± their deviation.

    Each argument maps splits to scores; there is one such mapping for each retrained model.

    Example:
        >>> from matplotlib.figure import Figure
        >>> score = {"forget-test": LossAndAccuracy(loss=1.0, accuracy=0.5, samples=10)}
        >>> axes = accuracy_bars(Figure().subplots(), score, score)
        >>> [label.get_text() for label in axes.get_yticklabels()]
        ['forget-test']
    """
    splits = [*after]
    groups = {"original": [_accuracy(before, s) for s in splits], "unlearned": [_accuracy(after, s) for s in splits]}
    spread = {}
    if retrained:
        known = [[a for each in retrained if (a := _accuracy(each, s)) is not None] for s in splits]
        groups["retrained"] = [float(np.mean(rates)) if rates else None for rates in known]
        spread["retrained"] = [float(np.std(rates, ddof=1)) if len(rates) > 1 else 0.0 for rates in known]
    bars(axes, splits, groups, spread=spread)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("accuracy")
    legend_above(axes)
    return axes


def _accuracy(scores: Scores, split: str) -> float | None:
    return scores[split].accuracy if split in scores else None


def layers_of(report: Report, most: int = MOST) -> tuple[TensorChange, ...]:
    """Put tensors together by the beginning of their names until there are few enough, in the order of the model.

    Example:
        >>> from unlearnkit.unlearning.report import TensorChange
        >>> tensors = tuple(TensorChange(name=f"fc{i}.{what}", size=2, changed=1) for i in (1, 2) for what in "wb")
        >>> [layer.name for layer in layers_of(Report(method="m", tensors=tensors), most=2)]
        ['fc1', 'fc2']
    """
    deepest = max((t.name.count(".") + 1 for t in report.tensors), default=1)
    layers: tuple[TensorChange, ...] = ()
    for depth in range(deepest, 0, -1):
        sums: dict[str, list[int]] = {}
        for t in report.tensors:
            entry = sums.setdefault(".".join(t.name.split(".")[:depth]), [0, 0])
            entry[0] += t.size
            entry[1] += t.changed
        layers = tuple(TensorChange(name=name, size=size, changed=changed) for name, (size, changed) in sums.items())
        if len(layers) <= most:
            return layers
    kept = {id(layer) for layer in sorted(layers, key=lambda layer: -layer.fraction)[:most]}
    return tuple(layer for layer in layers if id(layer) in kept)


def edited_layers(axes: Axes, report: Report, *, layers: Sequence[TensorChange] = ()) -> Axes:
    """Draw which share of the weights of each layer was changed.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from unlearnkit.unlearning.report import TensorChange
        >>> report = Report(method="m", tensors=(TensorChange(name="fc.weight", size=4, changed=1),))
        >>> float(edited_layers(Figure().subplots(), report).patches[0].get_width())
        25.0
    """
    found = [
        (layer.name, 100 * layer.fraction, f"{100 * layer.fraction:.3g} %" if layer.changed else "0")
        for layer in layers or layers_of(report)
    ]
    labelled_bars(axes, found, LOOKS["unlearned"], unit="weights changed, %")
    return axes


def tuning_frontier(axes: Axes, tuning: Tuning) -> Axes:
    """Draw every edit that was tried, the frontier, the chosen one, the target and the budget.

    Example:
        >>> from matplotlib.figure import Figure
        >>> found = Tuning(target=0.0, target_source="stated", budget=0.02, original_retain=1.0, original_forget=0.9)
        >>> tuning_frontier(Figure().subplots(), found).get_ylabel()
        'forget accuracy'
    """
    made = [c for c in tuning.candidates if not c.problem]
    axes.axhline(tuning.target, color=OTHER.colour, linestyle="--", linewidth=1, label="target")
    limit = tuning.original_retain - tuning.budget
    axes.axvline(limit, color=OTHER.colour, linestyle=":", linewidth=1.5, label="budget")
    axes.plot([c.retain for c in made], [c.forget for c in made], "x", color=OTHER.colour, ms=5, label="tried")
    best = sorted(tuning.frontier, key=lambda c: c.retain)
    look = LOOKS["retrained"]
    axes.plot(
        [c.retain for c in best],
        [c.forget for c in best],
        color=look.colour,
        marker=look.marker,
        linestyle=look.line,
        label="frontier",
    )
    look = LOOKS["original"]
    axes.plot(
        [tuning.original_retain],
        [tuning.original_forget],
        color=look.colour,
        marker=look.marker,
        linestyle="none",
        ms=8,
        label="original",
    )
    if tuning.chosen is not None:
        look, c = LOOKS["unlearned"], tuning.chosen
        axes.plot([c.retain], [c.forget], color=look.colour, marker="*", linestyle="none", ms=15, label="chosen")
    axes.set_xlabel("retain accuracy")
    axes.set_ylabel("forget accuracy")
    axes.set_ylim(-0.04, 1.04)
    axes.margins(x=0.06)
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    legend_above(axes)
    return axes


def timings(axes: Axes, seconds: Mapping[str, float]) -> Axes:
    """Draw the wall-clock seconds of each stage.

    Example:
        >>> from matplotlib.figure import Figure
        >>> float(timings(Figure().subplots(), {"edit": 0.25}).patches[0].get_width())
        0.25
    """
    found = [(stage, value, f"{value:.3g} s") for stage, value in seconds.items()]
    labelled_bars(axes, found, LOOKS["original"], unit="seconds")
    return axes
