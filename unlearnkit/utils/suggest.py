"""Names of methods, estimators and metrics: their pattern, and the nearest ones to a misspelt name."""

import difflib
import re
from collections.abc import Iterable

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""What a method, an estimator or a metric may be called."""


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
