"""Parts of a page: sections with text, tables and pictures, and a picture as inline SVG."""

import io
import warnings
from collections.abc import Callable
from typing import Any, final
from xml.etree import ElementTree as ET

import attrs
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _LINE = "#010203", "#040506"  # replaced by the page's colours, which depend on light and dark
_XLINK = "{http://www.w3.org/1999/xlink}"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and is drawn in the reader's font
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    "grid.color": _LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 11,
    "hatch.linewidth": 0.7,
}
_WIDTH = 5.0


@final
@attrs.frozen(kw_only=True)
class Table:
    """Text in rows and columns; the first column names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@attrs.frozen(kw_only=True, eq=False)
class Picture:
    """A picture, its description in words, and its numbers as a table."""

    name: str
    title: str
    caption: str
    alternative: str
    draw: Callable[[Axes], Axes]
    height: float
    table: Table


@final
@attrs.frozen(kw_only=True, eq=False)
class Section:
    """One part of the page."""

    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there are only words, which say what is missing."""
        return not (self.pictures or self.tables or self.folded)


def svg(picture: Picture) -> str:
    """Draw a picture as SVG with a title and a description, in the page's colours, the same bytes each time."""
    # The user's matplotlib style must not change the page; the backend stays the user's.
    usual = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")}
    with mpl.rc_context({**usual, **_STYLE, "svg.hashsalt": picture.name}), warnings.catch_warnings():
        # A glyph that is missing here may exist in the browser's font, which draws the text.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=(_WIDTH, picture.height), layout="constrained")
        picture.draw(figure.subplots())
        written = io.BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    return _inline(written.getvalue().decode(), picture)


def _inline(drawn: str, picture: Picture) -> str:
    root = ET.fromstring(drawn.replace(_INK, "currentColor").replace(_LINE, "var(--line)"))
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
        parent.tag = parent.tag.rpartition("}")[2]
        _prefix(parent, picture.name)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    words = {"title": picture.title, "desc": picture.alternative}
    for place, (tag, text) in enumerate(words.items()):
        element = ET.Element(tag, {"id": f"{picture.name}-{tag}"})
        element.text = text
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
