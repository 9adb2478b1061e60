"""Where the time went."""

from collections.abc import Mapping

from matplotlib.axes import Axes

from unlearnkit.reporting.plots.style import LOOKS, plain


def timings(axes: Axes, seconds: Mapping[str, float]) -> Axes:
    """Draw the wall-clock seconds of each stage.

    Args:
        axes: Where to.
        seconds: Stage to seconds.

    Returns:
        The same axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> float(timings(Figure().subplots(), {"edit": 0.25}).patches[0].get_width())
        0.25
    """
    at = range(len(seconds))
    axes.barh(at, [*seconds.values()], color=LOOKS["original"].colour, height=0.7)
    for y, value in zip(at, seconds.values(), strict=True):
        axes.annotate(f"{value:.3g} s", (value, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(at, [plain(stage) for stage in seconds])
    axes.invert_yaxis()
    axes.set_xlim(0, max([*seconds.values(), 0.0]) * 1.2 or 1)
    axes.set_xlabel("seconds")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return axes
