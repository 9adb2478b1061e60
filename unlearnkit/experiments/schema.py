"""A JSON schema of the configuration, with which editors complete and check a TOML file."""

import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from unlearnkit.experiments.config import Config
from unlearnkit.utils.options import options_of

_PLAIN = {str: "string", bool: "boolean", int: "integer", float: "number"}
_BOUNDS = {"≥": "minimum", ">": "exclusiveMinimum", "≤": "maximum"}


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of an experiment's configuration."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "An unlearnkit experiment",
        **_section(Config),
    }


def _section(cls: type) -> dict[str, Any]:
    fields = attrs.fields_dict(attrs.resolve_types(cls))
    known = {o.name: o for o in options_of(cls)}
    properties = {}
    for name, field in fields.items():
        schema = _of(field.type)
        option = known.get(name)
        if option is not None and option.doc:
            schema |= {"description": option.doc}
            schema |= {_BOUNDS[sign]: bound for sign, bound in option.bounds}
            schema |= {"enum": list(option.choices)} if option.choices else {}
        if isinstance(field.default, str | bool | int | float):
            schema |= {"default": field.default}
        properties[name] = schema
    required = [name for name, field in fields.items() if field.default is attrs.NOTHING]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _of(kind: Any) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if isinstance(kind, type) and attrs.has(kind):
        return _section(kind)
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0])}
    if origin in {typing.Union, types.UnionType}:
        found = [_of(one) for one in arguments if one is not type(None)]
        return found[0] if len(found) == 1 else {"anyOf": found}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    return {}
