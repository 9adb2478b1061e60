"""The common style of the plots: colour, hatch, line and marker of each model, labels and legends."""

from collections.abc import Sequence
from typing import final

import attrs
from matplotlib.axes import Axes


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
LONGEST = 28
"""Labels are cut to this many characters; the table below a plot has the full ones."""


def plain(text: str) -> str:
    r"""Escape what matplotlib would read as mathematics, and shorten long labels.

    Example:
        >>> plain("$x$")
        '\\$x\\$'
    """
    short = text if len(text) <= LONGEST else f"{text[: LONGEST // 2 - 1]}…{text[-LONGEST // 2 :]}"
    return " ".join(short.split()).replace("$", r"\$")


def bars(
    axes: Axes, names: list[str], groups: dict[str, list[float | None]], *, spread: dict[str, list[float]]
) -> None:
    """Draw grouped horizontal bars, each with its number."""
    height = 0.8 / max(len(groups), 1)
    for place, (model, values) in enumerate(groups.items()):
        look = LOOKS.get(model, OTHER)
        at = [i - 0.4 + (place + 0.5) * height for i in range(len(names))]
        axes.barh(
            at,
            [value or 0.0 for value in values],
            height=0.9 * height,
            color=look.colour,
            hatch=look.hatch,
            edgecolor="white",
            linewidth=0,
            label=model,
        )
        for y, value, half in zip(at, values, spread.get(model, [0.0] * len(names)), strict=True):
            if value is not None:
                if half:
                    axes.errorbar(value, y, xerr=half, color=axes.xaxis.label.get_color(), capsize=2, linewidth=1)
                axes.annotate(
                    f"{value:.3f}", (value + half, y), xytext=(3, 0), textcoords="offset points", va="center", size=8
                )
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def labelled_bars(axes: Axes, found: Sequence[tuple[str, float, str]], look: Look, *, unit: str) -> None:
    """Draw one horizontal bar for each name and value, with a text at its end."""
    names, values, texts = zip(*found, strict=True) if found else ((), (), ())
    axes.barh(
        range(len(values)), values, color=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0, height=0.7
    )
    for y, (value, text) in enumerate(zip(values, texts, strict=True)):
        axes.annotate(text, (value, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(range(len(names)), [plain(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 0.0]) * 1.2 or 1)
    axes.set_xlabel(unit)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def legend_above(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the axes, on the right."""
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
