"""Which parameters an edit may change, by patterns of their names."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from unlearnkit.models.parameters import holders
from unlearnkit.utils.errors import ConfigurationError, raise_all


def patterns(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return patterns as a tuple; one string is one pattern. A converter for attrs."""
    found = (given,) if isinstance(given, str) else tuple(given)
    if not all(isinstance(one, str) and one for one in found):
        raise ConfigurationError(f"expected patterns of parameter names, such as '*.mlp.*', saw {given!r}")
    return found


@contextmanager
def only_selected(model: nn.Module, *, only: Sequence[str], exclude: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Freeze parameters that ``only`` does not select, or that ``exclude`` does, and thaw them afterwards.

    A pattern selects a parameter by one of its names (a tied one has several), or by ``"type:"`` and the class of the
    module that holds it. Yields the names of those that were frozen.
    """
    held = holders(model)
    words = {
        name: [word for place, module, _ in places for word in (place, f"type:{type(module).__name__}")]
        for name, places in held.items()
    }
    problems = [
        f"{where}: no parameter matches {pattern!r}{_closest(pattern, words.values())}"
        for where, wanted in (("only", only), ("exclude", exclude))
        for pattern in wanted
        if not any(_selects([pattern], some) for some in words.values())
    ]
    raise_all(problems, where=f"parameters of {type(model).__name__}", error=ConfigurationError)
    trains = [name for name, places in held.items() if places[0][2].requires_grad]
    kept = [n for n in trains if (not only or _selects(only, words[n])) and not _selects(exclude, words[n])]
    if trains and not kept:
        raise ConfigurationError(
            f"only={tuple(only)}, exclude={tuple(exclude)}: expected to leave a trainable parameter of "
            f"{type(model).__name__}, saw none left: choose other patterns"
        )
    left_out = tuple(name for name in trains if name not in kept)
    frozen = [p for name in left_out for _, _, p in held[name] if p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad = False
        yield left_out
    finally:
        for p in frozen:
            p.requires_grad = True


def _selects(wanted: Sequence[str], words: Iterable[str]) -> bool:
    return any(fnmatchcase(word, pattern) for word in words for pattern in wanted)


def _closest(pattern: str, words: Iterable[Iterable[str]]) -> str:
    """Name what comes nearest to a pattern that matches nothing."""
    known = sorted({word for some in words for word in some if word.startswith("type:") == pattern.startswith("type:")})
    close = difflib.get_close_matches(pattern.replace("*", ""), known, n=3, cutoff=0.0)
    return f": the closest are {', '.join(map(repr, close))}" if close else ""
