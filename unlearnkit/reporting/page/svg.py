"""A picture as inline SVG: with a title and a description, in the page's own colours, the same bytes each time."""

import io
import warnings
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib.figure import Figure

from unlearnkit.reporting.page.parts import Picture

_INK, _LINE = "#010203", "#040506"  # replaced by the page's colours, which depend on light and dark
_XLINK = "{http://www.w3.org/1999/xlink}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and is drawn in the reader's font
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "hatch.linewidth": 0.7,
}
_WIDTH = 5.0


def svg(picture: Picture) -> str:
    """Draw a picture."""
    # The reader's page must not depend on the writer's style; the backend is the writer's own business.
    usual = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context({**usual, **_STYLE, "svg.hashsalt": picture.name}), warnings.catch_warnings():
        # The reader's font has signs that ours lacks, and it is the reader's that draws.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(_WIDTH, picture.height), layout="constrained")
        picture.draw(figure.subplots())
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(written.getvalue().decode(), picture)


def _inline(text: str, picture: Picture) -> str:
    for sentinel, colour in ((_INK, "currentColor"), (_LINE, "var(--line)")):
        text = text.replace(sentinel, colour)
    root = ET.fromstring(text)
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
        parent.tag = parent.tag.rpartition("}")[2]
        _prefix(parent, picture.name)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    words = {"title": picture.title, "desc": picture.alternative}
    for place, (tag, said) in enumerate(words.items()):
        element = ET.Element(tag, {"id": f"{picture.name}-{tag}"})
        element.text = said
        root.insert(place, element)
    root.attrib |= {"role": "img", "aria-labelledby": " ".join(f"{picture.name}-{tag}" for tag in words)}
    return ET.tostring(root, encoding="unicode")


def _prefix(element: "ET.Element[str]", name: str) -> None:
    for key, value in [*element.attrib.items()]:
        if key.startswith(_XLINK):
            del element.attrib[key]
        if key == "id":
            element.set("id", f"{name}-{value}")
        elif key == f"{_XLINK}href":
            element.set("href", value.replace("#", f"#{name}-"))
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
