"""Parts of plots: the look of each model, labelled bars, and axes for a value that draws itself.

Colours are Okabe and Ito's, which colour-blind readers can tell apart, and everything that has a colour has its own
marker or hatch too.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, final

import attrs
from matplotlib.axes import Axes

from unlearnkit.utils.text import percent


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
OTHER = Look(colour="#999999", hatch="", line=":", marker=".")
LONGEST = 28  # characters of a label; the table below a plot has all of them


def axes_for(rows: int) -> Axes:
    """Make axes in a figure of its own, high enough for some rows of bars."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - it chooses a backend

    axes: Axes = plt.subplots(figsize=(6.4, 1 + 0.26 * rows), layout="constrained")[1]
    return axes


def plain(text: str) -> str:
    """Escape what matplotlib would read as mathematics, and shorten long labels."""
    short = text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"
    return " ".join(short.split()).replace("$", r"\$")


def layer_shares(axes: Axes | None, shares: Mapping[str, float], *, unit: str) -> Axes:
    """Draw the share of each layer, 0 to 1, in per cent."""
    found = [(name, 100 * share, percent(share) if share else "0") for name, share in shares.items()]
    return labelled_bars(axes or axes_for(len(found)), found, LOOKS["unlearned"], unit=unit)


def labelled_bars(axes: Axes, found: Sequence[tuple[str, float, str]], look: Look, *, unit: str) -> Axes:
    """Draw a bar with its text for each name."""
    names, values, texts = zip(*found, strict=True) if found else ((), (), ())
    bars(axes, range(len(values)), values, look, height=0.7)
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        write_number(axes, value, y, text)
    name_rows(axes, names)
    axes.set(xlim=(0, max([*values, 0.0]) * 1.2 or 1), xlabel=unit)
    return axes


def bars(
    axes: Axes, at: Sequence[float], values: Sequence[float], look: Look, *, height: float, label: str = ""
) -> None:
    """Draw horizontal bars in the look of a model."""
    axes.barh(
        at, values, height=height, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, label=label
    )


def write_number(axes: Axes, x: float, y: float, text: str) -> None:
    """Write a number behind a bar."""
    axes.annotate(text, (x, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of bars, the first one on top."""
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    grid(axes, "x")


def grid(axes: Axes, axis: Literal["both", "x"]) -> None:
    """Draw a grid below everything else."""
    axes.grid(visible=True, axis=axis)
    axes.set_axisbelow(True)


def legend_above(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the axes."""
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
