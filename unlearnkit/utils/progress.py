"""Progress bars: the library shows none unless it is passed a `Progress`."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iterable, like tqdm: ``progress(items, description, total)`` yields the same items."""


def silent(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:  # noqa: ARG001
    """Show nothing: the default."""
    return items


def length(items: Iterable[Any]) -> int | None:
    """Return the number of items, or None for an iterator."""
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
