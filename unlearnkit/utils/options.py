"""What a plugin's class declares: a name, methods, and options: attrs fields with a symbol, a source and bounds."""

import contextlib
import functools
import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar, final

import attrs

from unlearnkit.utils.errors import ConfigurationError

K = TypeVar("K")
T = TypeVar("T")
V = TypeVar("V")

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""What a plugin, a method, an estimator or a metric may be called."""

_UNREAD = type(attrs.field())  # a field that no decorator of attrs has read
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
        search: Smallest and largest value that a search tries; None where the option is not searched.
        replaces: Name of the option that has no effect where this one is given.
        signal: Name of what is measured to set it; "" where it is not measured.
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
    search: tuple[float, float] | None = None
    replaces: str = ""
    signal: str = ""


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
    search: tuple[float, float] | None = None,
    replaces: str = "",
    signal: str = "",
    parts: bool = False,
) -> Any:
    """Declare an option of a frozen attrs class, with a check that names the field, the bound and the value seen.

    A float option takes an int (TOML writes ``alpha = 10``) and infinity, never NaN, a bool or a string. The type of
    the default is that of the option, but for an int of a field that is annotated ``float``; None means: may be left
    out, else any number. ``at_least`` and ``at_most`` are inclusive bounds, ``above`` is an exclusive one; ``choices``
    are the only strings allowed. ``doc`` is one line for ``unlearnkit methods``, ``symbol`` the letter in the equation,
    as ``"α"``, ``source`` the paper and its equation.
    ``meaning`` is False for an option that changes speed or memory only. ``search`` is the range in which
    ``unlearnkit tune`` looks for a value, by its logarithm where it spans a factor of 10 or more, unless the option
    that this one ``replaces`` is set. ``signal`` names what ``unlearnkit recommend`` measures to set it:
    ``"forget-loss"``, the mean loss on the forget set, in nats, of a model that never saw it. ``parts`` is True for a
    tuple of objects with options of their own, such as the steps of a method.

    Examples:
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
    limits = tuple((sign, bound) for sign, bound in bounds.items() if bound is not None)
    if search is not None:
        _check_search(search, limits)
    described = {
        "symbol": symbol,
        "doc": doc,
        "source": source,
        "meaning": meaning,
        "kind": tuple if parts else float if default is None or default is attrs.NOTHING else type(default),
        "bounds": limits,
        "choices": tuple(choices),
        "search": search,
        "replaces": replaces,
        "signal": signal,
    }
    check = attrs.Converter(_checked, takes_self=True, takes_field=True)  # runs before any validator of the author's
    return attrs.field(default=default, converter=check, metadata={_OPTION: described})


def _check_search(search: Any, bounds: Iterable[tuple[str, float]]) -> None:
    pair = isinstance(search, tuple) and len(search) == 2 and all(isinstance(end, int | float) for end in search)
    if not pair or not search[0] < search[1] or not all(map(math.isfinite, search)):
        raise ConfigurationError(
            f"option: expected search=(low, high), two finite numbers with low < high, saw {search!r}"
        )
    for sign, bound in bounds:
        if not all(_COMPARE[sign](end, bound) for end in search):
            raise ConfigurationError(f"option: expected a range to search {sign} {bound:g}, saw search={search!r}")


def _checked(value: Any, owner: Any, field: "attrs.Attribute[Any]") -> Any:
    known = _describe(field)
    if value is None and not known.required and known.default is None:
        return None
    if known.kind is tuple and isinstance(value, list):
        value = tuple(value)
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
    nouns = {float: "a number", int: "a whole number", bool: "true or false", str: "a string", tuple: "a list"}
    bounds = "".join(f" {sign} {bound:g}" for sign, bound in known.bounds)
    return nouns.get(known.kind, known.kind.__name__) + bounds


def options_of(owner: Any) -> tuple[Option, ...]:
    """List the options of an attrs class or an instance of one; anything else has none.

    Examples:
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
    described = field.metadata.get(_OPTION, {})
    if isinstance(default, int) and described.get("kind") is int and field.type in {float, "float"}:
        described, default = {**described, "kind": float}, float(default)
    return Option(name=field.name, default=default, required=required, **described)


def option_values(owner: Any, *, meaning_only: bool = False) -> dict[str, Any]:
    """Return the values of an object's options; those of its parts as names and options."""
    values = {o.name: getattr(owner, o.name) for o in options_of(owner) if o.meaning or not meaning_only}
    recorded = {
        name: [{"name": part.name, "options": option_values(part, meaning_only=meaning_only)} for part in parts]
        for name, parts in _held(owner).items()
    }
    return {**values, **recorded}


def nested_options(owner: Any, prefix: str = "") -> Iterator[tuple[Option, Any]]:
    """Yield the options of an object and of its parts, as ``"part.option"``, with their values."""
    held = _held(owner)
    for known in options_of(owner):
        if known.name not in held:
            replaces = known.replaces and prefix + known.replaces
            yield attrs.evolve(known, name=prefix + known.name, replaces=replaces), getattr(owner, known.name)
    for label, part in parts_of(owner).items():
        yield from nested_options(part, f"{prefix}{label}.")


def with_options(owner: T, values: Mapping[str, Any]) -> T:
    """Copy an object with other values of options, named as by `nested_options`."""
    changed: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    labelled = iter(parts_of(owner).items())
    for name, parts in _held(owner).items():
        changed[name] = tuple(
            with_options(part, {key[len(label) + 1 :]: v for key, v in values.items() if key.startswith(f"{label}.")})
            for label, part in islice(labelled, len(parts))
        )
    copied: T = attrs.evolve(owner, **changed)  # type: ignore[misc]
    return copied


def parts_of(owner: Any) -> dict[str, Any]:
    """Return the objects with options of their own that an object's options hold, as the steps of a method."""
    return by_label([part for parts in _held(owner).values() for part in parts])


def by_label(parts: Sequence[T]) -> dict[str, T]:
    """Label objects by their names; equal names are numbered, as ``"finetune-1"`` and ``"finetune-2"``.

    Examples:
        >>> import types
        >>> [*by_label([types.SimpleNamespace(name=name) for name in ("ssd", "finetune", "finetune")])]
        ['ssd', 'finetune-1', 'finetune-2']
    """
    names: list[str] = [part.name for part in parts]  # type: ignore[attr-defined]
    numbers = [names[: place + 1].count(name) for place, name in enumerate(names)]
    labels = [f"{name}-{i}" if names.count(name) > 1 else name for name, i in zip(names, numbers, strict=True)]
    return dict(zip(labels, parts, strict=True))


def _held(owner: Any) -> dict[str, tuple[Any, ...]]:
    """Return the options whose value is a tuple of named objects with options of their own."""
    values = {o.name: getattr(owner, o.name) for o in options_of(owner)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, tuple) and value and all(attrs.has(type(one)) and hasattr(one, "name") for one in value)
    }


def class_fault(cls: type) -> str:
    """Say what is wrong with a method, an estimator or a metric class; "" when nothing is."""
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        return f"{cls.__qualname__} is abstract: write {missing}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"{cls.__qualname__}.name: expected lower-case letters, digits and '-', as 'my-method', saw {name!r}"
    if unrecorded(cls):
        return _not_recorded(cls, unrecorded(cls))
    plain = _plain_fields(cls)
    if plain:
        return (
            f"{cls.__qualname__}: expected options made by option(), saw the plain field {', '.join(plain)}: write "
            f"`{plain[0]}: float = option(…, doc=…)`, or make it private or init=False where it is no option"
        )
    return next(filter(None, (_signature_fault(cls, base) for base in cls.__mro__[1:])), "")


def object_fault(owner: Any) -> str:
    """Say what is wrong with an object, whose class has no fault: attributes that were set on it; "" for none."""
    cls = type(owner)
    fields = {field.name for field in attrs.fields(cls)} if attrs.has(cls) else set()
    cached = {name for name in dir(cls) if isinstance(inspect.getattr_static(cls, name), functools.cached_property)}
    lost = [name for name in getattr(owner, "__dict__", {}) if not name.startswith("_") and name not in fields | cached]
    return _not_recorded(cls, lost) if lost else ""


def _not_recorded(cls: type, lost: Sequence[str]) -> str:
    return (
        f"{cls.__qualname__}: expected options that are attrs fields, saw {', '.join(lost)}, which no record would "
        "hold: decorate the class with @attrs.frozen(kw_only=True) and write `lam: float = option(…)`, or make private "
        "what is no option"
    )


def refuse(fault: str) -> None:
    """Raise an error for what `class_fault` found, if anything."""
    if fault:
        raise ConfigurationError(fault)


def unrecorded(cls: type) -> list[str]:
    """Name the parameters of a class that are no attrs fields, and fields that attrs did not read."""
    fields = {field.alias for field in attrs.fields(cls)} if attrs.has(cls) else set()
    unread = [name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, _UNREAD)]
    return unread or [name for name in _parameters(cls) if name not in fields]


def _plain_fields(cls: type) -> list[str]:
    """Name the fields that `option` did not make, but for private ones and those that no caller sets."""
    found = attrs.fields(cls) if attrs.has(cls) else ()
    return [f.name for f in found if f.init and not f.name.startswith("_") and _OPTION not in f.metadata]


def _parameters(cls: type) -> list[str]:
    try:
        return list(inspect.signature(cls).parameters)
    except (TypeError, ValueError):  # none that Python can show
        return []


def _signature_fault(cls: type, base: type) -> str:
    """Say which method of a framework's class is overridden with other parameters than it is called with."""
    if base.__module__.partition(".")[0] != "unlearnkit":
        return ""
    for name, declared in vars(base).items():
        own = inspect.getattr_static(cls, name, None)
        function = getattr(own, "__func__", own)
        if not inspect.isfunction(declared) or not inspect.isfunction(function):
            continue
        if name.startswith("_") or hasattr(declared, "__final__"):  # nobody should override it, or call it by itself
            continue
        parameters = inspect.signature(declared).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        seen = inspect.signature(function)
        try:
            seen.bind(*positional[isinstance(own, staticmethod) :], **dict.fromkeys(by_name))
        except TypeError:
            expected = ", ".join([*positional, *(["*", *by_name] if by_name else [])])
            return f"{cls.__qualname__}.{name}: expected the parameters ({expected}), saw {seen}"
    return ""


def final_fault(cls: type) -> str:
    """Say which method that the framework makes final a class overrides; "" for none."""
    for base in cls.__mro__[1:]:
        for name, declared in vars(base).items():
            overridden = inspect.isfunction(declared) and inspect.getattr_static(cls, name) is not declared
            if overridden and hasattr(declared, "__final__"):
                return f"{cls.__qualname__}.{name}: is final in {base.__qualname__}, must not be overridden"
    return ""


def several(names: Iterable[str]) -> tuple[str, ...]:
    """Return each name once; one string, whose letters would be taken for names, is an error."""
    if isinstance(names, str):
        raise ConfigurationError(f"expected several names, saw {names!r}: write [{names!r}]")
    return tuple(dict.fromkeys(names))


def name_set(names: Iterable[str]) -> frozenset[str]:
    """Return the set of `several` names."""
    return frozenset(several(names))


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
