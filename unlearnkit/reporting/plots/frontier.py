"""What a search tried: accuracy on retained against forgotten validation data."""

from matplotlib.axes import Axes

from unlearnkit.evaluation.tuning import Tuning
from unlearnkit.reporting.plots.style import LOOKS, OTHER, legend_above


def tuning_frontier(axes: Axes, tuning: Tuning) -> Axes:
    """Draw every edit that was tried, the frontier, the chosen one, the target and the budget.

    Args:
        axes: Where to.
        tuning: The result of a search.

    Returns:
        The same axes.

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
