"""What a page consists of: sections with sentences, tables and pictures."""

from collections.abc import Callable
from typing import final

import attrs
from matplotlib.axes import Axes


@final
@attrs.frozen(kw_only=True)
class Table:
    """Text in rows and columns; the first column names the row.

    Attributes:
        caption: What it shows.
        header: One text per column.
        rows: As many texts each.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@final
@attrs.frozen(kw_only=True, eq=False)
class Picture:
    """One picture, what it shows in words, and the same as a table.

    Attributes:
        name: Its id on the page: letters and hyphens.
        title: A few words.
        caption: How to read it.
        alternative: What somebody should know who does not see it.
        draw: Draws it on axes.
        height: Of the picture in inches; all are 5 wide.
        table: The numbers.
    """

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
    """One part of the page.

    Attributes:
        name: Its id on the page.
        title: Its heading.
        words: Paragraphs.
        pictures: In order.
        tables: Below the pictures.
        folded: Heading to text, shown as it is when unfolded.
    """

    name: str
    title: str
    words: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: tuple[tuple[str, str], ...] = ()


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for people.

    Args:
        value: Or None.
        digits: After the point.

    Returns:
        Fixed digits; a dash where there is none; few digits of the very small and the very large.

    Example:
        >>> number(0.5), number(None), number(0.00002), number(0.0)
        ('0.500', '–', '2e-05', '0.000')
    """
    if value is None:
        return "–"
    plain = value == 0 or 10**-digits <= abs(value) < 1e6
    return f"{value:.{digits}f}" if plain else f"{value:.3g}"
