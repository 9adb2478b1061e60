"""Every error and warning that unlearnkit raises on purpose.

A message says what was expected, what was seen, who is to blame and what to do about it.
"""

from collections.abc import Iterable, Sequence


class UnlearnKitError(Exception):
    """The parent of every error of this package: catch it to catch them all."""


class ConfigurationError(UnlearnKitError, ValueError):
    """An option, a configuration key or an argument has a value that cannot be used."""


class MismatchError(UnlearnKitError, ValueError):
    """Two things that must fit do not: names, shapes, dtypes, devices or kinds of importance."""


class NonFiniteError(UnlearnKitError, ValueError):
    """A NaN or an infinity in a model, a loss, a gradient or a result."""


class UnknownMethodError(UnlearnKitError, LookupError):
    """No installed plugin registers this name; the message names the nearest ones."""


class DuplicateMethodError(UnlearnKitError):
    """Two plugins register the same name; the message names both distributions."""


class PluginLoadError(UnlearnKitError):
    """A plugin is installed but cannot be used; the cause is chained."""


class UnsupportedModelError(UnlearnKitError):
    """The model does something for which the quantity asked for does not exist."""


class StoreError(UnlearnKitError):
    """A file cannot be read or written as asked."""


class BudgetError(UnlearnKitError):
    """An edit went past the limit set for it and was rolled back."""


class UnlearnKitWarning(UserWarning):
    """Something is legal and almost certainly not what was meant."""


class PluginWarning(UnlearnKitWarning):
    """A plugin was left out, and why."""


def raise_all(problems: Iterable[str], *, where: str, error: type[UnlearnKitError] = MismatchError) -> None:
    """Raise one error that lists every problem, or do nothing when there is none.

    Example:
        >>> raise_all([], where="the model")
        >>> raise_all(["a: expected 3 values, saw 4"], where="the model")
        Traceback (most recent call last):
        unlearnkit.utils.errors.MismatchError: the model: a: expected 3 values, saw 4
    """
    found = list(problems)
    if found:
        raise error(sentence(found, where=where))


def sentence(problems: Sequence[str], *, where: str) -> str:
    """Write one message for one or several problems."""
    if len(problems) == 1:
        return f"{where}: {problems[0]}"
    lines = "\n".join(f"  - {problem}" for problem in problems)
    return f"{where}: {len(problems)} problems:\n{lines}"
