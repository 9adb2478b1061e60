"""Accuracy before and after, beside that of retrained models."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from unlearnkit.evaluation import LossAndAccuracy
from unlearnkit.reporting.plots.style import bars, legend_above

Scores = Mapping[str, LossAndAccuracy]


def accuracy_bars(axes: Axes, before: Scores, after: Scores, retrained: Sequence[Scores] = ()) -> Axes:
    """Draw one group of bars per split: original, unlearned, and the mean of the retrained models ± their deviation.

    Args:
        axes: Where to.
        before: Split to the scores of the original model.
        after: The same of the edited model.
        retrained: The same of each retrained model.

    Returns:
        The same axes.

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
