"""What notebooks show of a value: HTML without style or script, which reads on any page, and data frames."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from html import escape
from typing import Any

from unlearnkit.utils.text import percent

MOST = 24  # layers that are shown
_WIDTH = 20  # characters of the longest bar
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def paragraphs(*sentences: str) -> str:
    """Return one paragraph for each sentence that is not empty."""
    return "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str = "") -> str:
    """Return a table, "" without rows."""
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if lines else ""


def share_bars(shares: Mapping[str, float], *, name: str, share: str) -> str:
    """Return a table of shares, 0 to 1, each with a bar; the largest share has the longest bar."""
    most = max(shares.values(), default=0.0)
    rows = [(key, percent(value), _bar(value / most if most else 0.0)) for key, value in shares.items()]
    return table((name, share, ""), rows)


def _bar(length: float) -> str:
    whole, rest = divmod(round(length * _WIDTH * 8), 8)
    return "█" * whole + _EIGHTHS[rest].strip()


def fewer(parts: Mapping[str, tuple[float, float]], *, most: int = MOST) -> dict[str, tuple[float, float]]:
    """Sum a whole and a part of each tensor by the beginning of their names, until at most so many names are left.

    The order is kept; where there are still too many, those of the largest share are left.
    """
    found: dict[str, tuple[float, float]] = {}
    for depth in range(max((name.count(".") + 1 for name in parts), default=0), 0, -1):
        found = {}
        for name, (whole, part) in parts.items():
            layer = ".".join(name.split(".")[:depth])
            before = found.get(layer, (0, 0))
            found[layer] = (before[0] + whole, before[1] + part)
        if len(found) <= most:
            return found
    kept = sorted(found, key=lambda name: -found[name][1] / (found[name][0] or 1))[:most]
    return {name: numbers for name, numbers in found.items() if name in kept}


def counted(items: Sized) -> str:
    """Say how many items a field of an attrs class holds, in its repr."""
    return f"<{len(items)}>"


def frame(rows: Iterable[Any], columns: Sequence[str] | None = None) -> Any:
    """Return a pandas data frame of rows: tuples with their columns, or mappings."""
    try:
        import pandas as pd  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ImportError(
            "to_frame() needs pandas, which is not installed: pip install 'unlearnkit[notebook]'"
        ) from error
    return pd.DataFrame([*rows], columns=columns)
