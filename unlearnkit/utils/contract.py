"""What every class of a plugin must have: a name, options that are recorded, methods that take what they are passed."""

import inspect
import re

import attrs

from unlearnkit.utils.errors import ConfigurationError

NAME = re.compile(r"[a-z][a-z0-9-]*")
"""What a plugin, a method, an estimator or a metric may be called."""

_UNREAD = type(attrs.field())  # a field that no decorator of attrs has read


def class_fault(cls: type) -> str:
    """Say what is wrong with a method, an estimator or a metric class; "" when nothing is."""
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(getattr(cls, "__abstractmethods__", ())))
        return f"{cls.__qualname__} is abstract: write {missing}"
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return f"{cls.__qualname__}.name: expected lower-case letters, digits and '-', as 'my-method', saw {name!r}"
    if unrecorded(cls):
        return (
            f"{cls.__qualname__}: expected options that are attrs fields, saw {', '.join(unrecorded(cls))}, which no "
            "record would hold: decorate the class with @attrs.frozen(kw_only=True) and write `lam: float = option(…)`"
        )
    return next(filter(None, (_signature_fault(cls, base) for base in cls.__mro__[1:])), "")


def refuse(fault: str) -> None:
    """Raise an error for what `class_fault` found, if anything."""
    if fault:
        raise ConfigurationError(fault)


def unrecorded(cls: type) -> list[str]:
    """Name the parameters of a class that are no attrs fields, and fields that attrs did not read."""
    fields = {field.alias for field in attrs.fields(cls)} if attrs.has(cls) else set()
    unread = [name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, _UNREAD)]
    return unread or [name for name in _parameters(cls) if name not in fields]


def _parameters(cls: type) -> list[str]:
    try:
        found = inspect.signature(cls).parameters.values()
    except (TypeError, ValueError):  # none that Python can show
        return []
    return [p.name for p in found if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]


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
