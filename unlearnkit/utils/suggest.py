"""Guess what a misspelt name was meant to be."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are nearest.

    Example:
        >>> nearest("aplha", ["alpha", "lam"])
        "; did you mean 'alpha'? Known: 'alpha', 'lam'"
    """
    names = sorted(known)
    if not names:
        return "; there are none"
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"; {guess}Known: {', '.join(map(repr, names))}"
