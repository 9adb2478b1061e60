"""Objects that a configuration describes: attrs classes from plain values, functions by import path."""

import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from unlearnkit.utils.errors import ConfigurationError, nearest, sentence
from unlearnkit.utils.options import options_of

T = TypeVar("T")


def _strict(value: Any, _: Any, *, kind: Any, noun: str) -> Any:
    # cattrs would convert "10" to 10 and 2.7 to 2.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigurationError(f"expected {noun}, saw {repr(value)[:80]}")
    return value


def structure(raw: Any, kind: type[T], *, where: str) -> T:
    """Build an attrs object from plain values."""
    try:
        return _CONVERTER.structure(raw, kind)
    except (cattrs.BaseValidationError, ConfigurationError) as error:
        problems = list(dict.fromkeys(_explain(error, "")))
        raise ConfigurationError(sentence(problems, where=where)) from error


def _explain(error: BaseException, path: str) -> Iterator[str]:
    if isinstance(error, ClassValidationError | IterableValidationError):
        with_notes, without = error.group_exceptions()
        for inner, note in with_notes:
            key = note.name if hasattr(note, "name") else note.index
            yield from _explain(inner, _at(path, key))
        for inner in without:
            yield from _explain(inner, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [field.alias for field in attrs.fields(error.cl)]
        for key in sorted(error.extra_fields):
            yield f"{_at(path, key)}: unknown key{nearest(key, known)}"
    elif isinstance(error, KeyError):
        yield f"{path}: expected, but missing"
    else:
        text = error.args[0] if error.args else type(error).__name__
        yield f"{path}: {text}" if path else str(text)


def _at(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


_CONVERTER = cattrs.Converter(forbid_extra_keys=True)
for _kind, _noun in {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.items():
    _CONVERTER.register_structure_hook(_kind, functools.partial(_strict, kind=_kind, noun=_noun))
_CONVERTER.register_structure_hook_func(
    lambda kind: kind == int | str, functools.partial(_strict, kind=int | str, noun="a whole number or a string")
)


def _made_of(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


@_CONVERTER.register_structure_hook_factory(attrs.has)
def _of_class(cls: type[attrs.AttrsInstance]) -> Callable[[Any, Any], Any]:
    inner = make_dict_structure_fn(cls, _CONVERTER)
    return lambda value, kind: inner(_strict(value, kind, kind=Mapping, noun="a table"), kind)


@_CONVERTER.register_structure_hook_factory(_made_of(Mapping))
def _of_mapping(kind: Any) -> Callable[[Any, Any], Any]:
    inner = _CONVERTER.get_structure_hook(dict[get_args(kind)])  # type: ignore[misc]
    return lambda value, _: inner(_strict(value, kind, kind=Mapping, noun="a table"), kind)


@_CONVERTER.register_structure_hook_factory(_made_of(tuple))
def _of_tuple(kind: Any) -> Callable[[Any, Any], Any]:
    inner = _CONVERTER.get_structure_hook(list[get_args(kind)[0]])  # type: ignore[misc]
    return lambda value, _: tuple(inner(_strict(value, kind, kind=list | tuple, noun="a list"), list))


def import_path(path: str) -> Callable[..., Any]:
    """Import a function or class."""
    module_name, sign, name = path.partition(":")
    if not sign or not module_name or not name:
        raise ConfigurationError(f"expected an import path as 'package.module:name', saw {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{path!r}: cannot import {module_name}: {error}: is it installed, or in the current folder with "
            "PYTHONPATH=. set?"
        ) from error
    if not callable(getattr(module, name, None)):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigurationError(f"{path!r}: {module_name} has no function {name!r}{nearest(name, public)}")
    found: Callable[..., Any] = getattr(module, name)
    return found


def call(function: Callable[..., T], options: Mapping[str, Any], *, where: str) -> T:
    """Call a function or class with options from a configuration."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have no signature
        return function(**options)
    takes = signature.parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        unknown = [name for name in options if name not in takes]
        if unknown:
            raise ConfigurationError(f"{where}: unknown option {unknown[0]!r}{nearest(unknown[0], takes)}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    given = {name for name, value in options.items() if value is not None}
    for known in options_of(function):
        if {known.name, known.replaces} <= given:
            raise ConfigurationError(f"{where}: {known.name!r} is used in place of {known.replaces!r}: remove one")
    return function(**options)
