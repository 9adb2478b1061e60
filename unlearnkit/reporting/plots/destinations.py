"""Where forgotten samples go: which classes they are predicted as."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from unlearnkit.evaluation.plot_data import Destination
from unlearnkit.reporting.plots.style import bars, legend_above

MOST = 10
"""How many classes a picture has at most; what is left goes together as "others"."""


def destination_shares(
    found: Sequence[Destination], classes: Sequence[str], most: int = MOST
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

    Args:
        axes: Where to.
        found: Predictions of each model; the entry ``"label"``, what the samples are, is not drawn.
        classes: Names of the classes.

    Returns:
        The same axes.

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
