"""Which layers were edited."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from unlearnkit.reporting.plots.style import LOOKS, plain
from unlearnkit.unlearning.report import Report, TensorChange

MOST = 24
"""How many bars a picture has at most."""


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

    Args:
        axes: Where to.
        report: Of one edit.
        layers: What to draw; by default `layers_of` the report.

    Returns:
        The same axes.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from unlearnkit.unlearning.report import TensorChange
        >>> report = Report(method="m", tensors=(TensorChange(name="fc.weight", size=4, changed=1),))
        >>> float(edited_layers(Figure().subplots(), report).patches[0].get_width())
        25.0
    """
    layers = layers or layers_of(report)
    look, at = LOOKS["unlearned"], range(len(layers))
    axes.barh(
        at,
        [100 * layer.fraction for layer in layers],
        color=look.colour,
        hatch=look.hatch,
        edgecolor="white",
        linewidth=0,
        height=0.7,
    )
    for y, layer in zip(at, layers, strict=True):
        text = f"{100 * layer.fraction:.3g} %" if layer.changed else "0"
        axes.annotate(text, (100 * layer.fraction, y), xytext=(3, 0), textcoords="offset points", va="center", size=8)
    axes.set_yticks(at, [plain(layer.name) for layer in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, max([100 * layer.fraction for layer in layers] or [0]) * 1.18 or 1)
    axes.set_xlabel("weights changed, %")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return axes
