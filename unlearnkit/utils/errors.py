"""Errors and warnings of unlearnkit, and help to write their messages.

A message says what was expected, what was seen, which object or plugin is at fault, and what to do.
"""

import difflib
import unicodedata
from collections.abc import Collection, Iterable, Sequence

CONTROL = frozenset({"Cc", "Cs"})
"""Unicode's categories of control characters, NUL among them, and of halves of surrogate pairs."""
INVISIBLE = CONTROL | {"Cf", "Zl", "Zp"}
"""The same with characters that change how a line is shown, or begin another."""
_SHOWN = 20  # problems in one message


class UnlearnKitError(Exception):
    """Base class of all errors of this package."""


class ConfigurationError(UnlearnKitError, ValueError):
    """An option, a configuration key or an argument has a value that cannot be used."""


class MismatchError(UnlearnKitError, ValueError):
    """Names, shapes, dtypes, devices or kinds of importance do not match."""


class NonFiniteError(UnlearnKitError, ValueError):
    """A NaN or an infinity in a model, a loss, a gradient or a result."""


class UnknownMethodError(UnlearnKitError, LookupError):
    """No installed plugin registers this name; the message names the nearest ones."""


class DuplicateMethodError(UnlearnKitError):
    """Two plugins register the same name; the message names both distributions."""


class PluginLoadError(UnlearnKitError):
    """A plugin is installed but cannot be used; the cause is chained."""


class UnsupportedModelError(UnlearnKitError):
    """The requested quantity does not exist, or cannot be computed, for this model."""


class StoreError(UnlearnKitError):
    """A file cannot be read or written."""


class BudgetError(UnlearnKitError):
    """An edit went past the limit set for it and was rolled back."""


class UnlearnKitWarning(UserWarning):
    """Something is allowed but is almost certainly a mistake."""


class PluginWarning(UnlearnKitWarning):
    """A plugin was skipped; the message says why."""


def raise_all(problems: Iterable[str], *, where: str, error: type[UnlearnKitError] = MismatchError) -> None:
    """Raise one error with all problems, or do nothing when there is none."""
    found = list(problems)
    if found:
        raise error(sentence(found, where=where))


def sentence(problems: Sequence[str], *, where: str) -> str:
    """Write one line for one or several problems, the first 20 of them in full."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    shown = [f"({number}) {problem}" for number, problem in enumerate(problems[:_SHOWN], start=1)]
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return f"{where}: {len(problems)} problems: {'; '.join([*shown, *more])}"


def visible(text: str, hidden: Collection[str] = INVISIBLE) -> str:
    r"""Escape characters of some categories, so that text typed by anybody cannot look like another line.

    Examples:
        >>> visible("one\nReceipt 9: forgotten")
        'one\\nReceipt 9: forgotten'
    """
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in hidden else c for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is nearest to a misspelt one."""
    names = sorted(known)
    if not names:
        return "; there are none"
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"; {guess}Known: {', '.join(map(repr, names))}"
