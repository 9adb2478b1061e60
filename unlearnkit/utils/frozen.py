"""Values that hold read-only mappings: how to make one, and how to pickle and copy what holds one."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import attrs

K = TypeVar("K")
V = TypeVar("V")

Reduced = tuple[Any, tuple[type, dict[str, Any]]]
"""What ``__reduce__`` returns: a function and its arguments."""


def read_only(mapping: Mapping[K, V]) -> Mapping[K, V]:
    """Copy a mapping into one that cannot be edited.

    Example:
        >>> read_only({"a": 1})
        mappingproxy({'a': 1})
    """
    return MappingProxyType(dict(mapping))


def by_fields(self: Any) -> Reduced:
    """Take an attrs value to pieces for `pickle` and `copy.deepcopy`: its class, and its fields as plain values.

    It is put together again through its own ``__init__``, converters and validators included.

    Example:
        >>> import copy
        >>> @attrs.frozen
        ... class Sizes:
        ...     known: Mapping[str, int] = attrs.field(converter=read_only)
        ...     __reduce__ = by_fields
        >>> copy.deepcopy(Sizes({"a": 1}))
        Sizes(known=mappingproxy({'a': 1}))
    """
    fields = {field.alias: getattr(self, field.name) for field in attrs.fields(type(self)) if field.init}
    plain = {name: dict(value) if isinstance(value, MappingProxyType) else value for name, value in fields.items()}
    return _put_together, (type(self), plain)


def _put_together(cls: type, fields: dict[str, Any]) -> Any:
    return cls(**fields)
