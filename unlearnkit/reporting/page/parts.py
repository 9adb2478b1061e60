"""What a page consists of: sections with sentences, tables and pictures."""

from collections.abc import Callable
from typing import final

import attrs
from matplotlib.axes import Axes


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
    """One picture, what it shows in words, and the same as a table."""

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

    name: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for people.

    Example:
        >>> number(0.5), number(None), number(0.00002), number(0.0)
        ('0.500', '–', '2e-05', '0.000')
    """
    if value is None:
        return "–"
    plain = value == 0 or 10**-digits <= abs(value) < 1e6
    return f"{value:.{digits}f}" if plain else f"{value:.3g}"
