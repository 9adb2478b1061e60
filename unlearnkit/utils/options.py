"""attrs fields: options with a symbol, a source and bounds, and mappings that are read-only."""

import contextlib
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar, final

import attrs

from unlearnkit.utils.errors import ConfigurationError

K = TypeVar("K")
V = TypeVar("V")

_OPTION = "option"  # key of the metadata of an attrs field
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"≥": operator.ge, ">": operator.gt, "≤": operator.le}


@final
@attrs.frozen(kw_only=True)
class Option:
    """The description of one option of a method; see `option` for the other attributes.

    Attributes:
        name: In Python and TOML.
        default: None when the option is required.
        kind: ``float``, ``int``, ``bool`` or ``str``; ``object`` for a plain ``attrs.field``.
        bounds: Sign and number of each bound, as ``((">", 0.0),)``.
    """

    name: str
    default: Any
    required: bool
    symbol: str = ""
    doc: str = ""
    source: str = ""
    meaning: bool = True
    kind: type = object
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()


def option(
    default: Any = attrs.NOTHING,
    *,
    doc: str,
    symbol: str = "",
    source: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Sequence[str] = (),
    meaning: bool = True,
) -> Any:
    """Declare an option of a frozen attrs class, with a check that names the field, the bound and the value seen.

    A float option takes an int (TOML writes ``alpha = 10``) and infinity, never NaN, a bool or a string. The type of
    the default is that of the option; None means: may be left out, else any number. ``at_least`` and ``at_most`` are
    inclusive bounds, ``above`` is an exclusive one; ``choices`` are the only strings allowed. ``doc`` is one line for
    ``unlearnkit methods``, ``symbol`` the letter in the equation, as ``"α"``, ``source`` the paper and its equation.
    ``meaning`` is False for an option that changes speed or memory only.

    Example:
        >>> @attrs.frozen(kw_only=True)
        ... class Method:
        ...     alpha: float = option(10.0, doc="selection weighting", symbol="α", above=0.0)
        >>> Method(alpha=3).alpha
        3.0
        >>> Method(alpha=-1.0)
        Traceback (most recent call last):
        unlearnkit.utils.errors.ConfigurationError: Method.alpha (α): expected a number > 0, saw -1.0
    """
    bounds = {"≥": at_least, ">": above, "≤": at_most}
    described = {
        "symbol": symbol,
        "doc": doc,
        "source": source,
        "meaning": meaning,
        "kind": float if default is None or default is attrs.NOTHING else type(default),
        "bounds": tuple((sign, bound) for sign, bound in bounds.items() if bound is not None),
        "choices": tuple(choices),
    }
    check = attrs.Converter(_checked, takes_self=True, takes_field=True)  # runs before any validator of the author's
    return attrs.field(default=default, converter=check, metadata={_OPTION: described})


def _checked(value: Any, owner: Any, field: "attrs.Attribute[Any]") -> Any:
    known = _describe(field)
    if value is None and not known.required and known.default is None:
        return None
    if known.kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # refused below, as an int
            value = float(value)
    if not fits(value, known):
        where = f"{type(owner).__name__}.{field.name}" + (f" ({known.symbol})" if known.symbol else "")
        raise ConfigurationError(f"{where}: expected {_expected(known)}, saw {value!r}")
    return value


def fits(value: Any, known: Option) -> bool:
    """Say whether a value is of the kind of an option and within its bounds."""
    if not isinstance(value, known.kind) or (isinstance(value, bool) and known.kind is not bool):
        return False
    if isinstance(value, float) and math.isnan(value):
        return False
    return (not known.choices or value in known.choices) and all(_COMPARE[s](value, b) for s, b in known.bounds)


def _expected(known: Option) -> str:
    if known.choices:
        return "one of " + ", ".join(map(repr, known.choices))
    nouns = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}
    bounds = "".join(f" {sign} {bound:g}" for sign, bound in known.bounds)
    return nouns.get(known.kind, known.kind.__name__) + bounds


def options_of(owner: Any) -> tuple[Option, ...]:
    """List the options of an attrs class or an instance of one; anything else has none.

    Example:
        >>> @attrs.frozen(kw_only=True)
        ... class Method:
        ...     tau: float = option(0.0, doc="threshold", symbol="τ")
        >>> [(o.name, o.symbol, o.default) for o in options_of(Method)]
        [('tau', 'τ', 0.0)]
    """
    kind = owner if isinstance(owner, type) else type(owner)
    if not attrs.has(kind):
        return ()
    own_first = sorted(attrs.fields(kind), key=lambda field: field.inherited)
    return tuple(_describe(field) for field in own_first if field.init)


def _describe(field: "attrs.Attribute[Any]") -> Option:
    required = field.default is attrs.NOTHING
    default = None if required else field.default
    return Option(name=field.name, default=default, required=required, **field.metadata.get(_OPTION, {}))


def option_values(owner: Any, *, meaning_only: bool = False) -> dict[str, Any]:
    """Return the values of an object's options."""
    return {o.name: getattr(owner, o.name) for o in options_of(owner) if o.meaning or not meaning_only}


def read_only(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Copy a mapping into a read-only one."""
    return MappingProxyType(dict(mapping))


def by_fields(self: Any) -> tuple[Any, tuple[type, dict[str, Any]]]:
    """A ``__reduce__`` for attrs values with read-only mappings, which cannot be pickled; it calls ``__init__``."""
    fields = {field.alias: getattr(self, field.name) for field in attrs.fields(type(self)) if field.init}
    plain = {name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in fields.items()}
    return _rebuild, (type(self), plain)  # no partial: a deep copy would share its tensors


def _rebuild(cls: type, fields: dict[str, Any]) -> Any:
    return cls(**fields)
