"""Turn plain values into checked attrs objects, with errors that name the key and the nearest right one."""

import functools
from collections.abc import Iterator
from typing import Any, TypeVar

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from unlearnkit.utils.errors import ConfigurationError, sentence
from unlearnkit.utils.suggest import nearest

T = TypeVar("T")


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=True)
    for kind, noun in {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}.items():
        converter.register_structure_hook(kind, functools.partial(_strict, kind=kind, noun=noun))
    converter.register_structure_hook_func(lambda kind: kind == int | str, _number_or_name)
    converter.register_structure_hook_factory(
        attrs.has, lambda cls: make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)
    )
    return converter


def _strict(value: Any, _: Any, *, kind: type, noun: str) -> Any:
    # cattrs would turn "10" into 10 and 2.7 into 2: what was written is what is meant, or an error.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigurationError(f"expected {noun}, saw {value!r}")
    return value


def _number_or_name(value: Any, _: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ConfigurationError(f"expected a whole number or a string, saw {value!r}")
    return value


def structure(raw: Any, kind: type[T], *, where: str) -> T:
    """Build an attrs object from plain values."""
    problems: list[str] = []
    try:
        return _CONVERTER.structure(raw, kind)
    except (cattrs.BaseValidationError, ConfigurationError) as error:
        problems = list(dict.fromkeys(_explain(error, "")))
        cause = error
    raise ConfigurationError(sentence(problems, where=where)) from cause


def _explain(error: BaseException, path: str) -> Iterator[str]:
    if isinstance(error, ClassValidationError | IterableValidationError):
        with_notes, without = error.group_exceptions()
        for inner, note in with_notes:
            key = note.name if hasattr(note, "name") else note.index
            yield from _explain(inner, f"{path}.{key}" if path else str(key))
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


_CONVERTER = _converter()
