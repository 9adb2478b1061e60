"""Progress of a long stage: the library is silent unless it is handed something that shows it."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], str, int | None], Iterable[Any]]
"""Wraps an iterable: ``progress(items, "what is going on", how many or None)`` yields the same items."""


def silent(items: Iterable[Any], what: str, total: int | None) -> Iterable[Any]:  # noqa: ARG001
    """Show nothing: the default of every function of the library."""
    return items


def length(items: Iterable[Any]) -> int | None:
    """Return how many items there are when they can be counted, else None.

    Example:
        >>> length([1, 2]), length(iter([1, 2]))
        (2, None)
    """
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
