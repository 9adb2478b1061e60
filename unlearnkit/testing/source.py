"""Writes values as Python code, so that a counterexample can be pasted and run."""

import enum
import math
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

import unlearnkit
from unlearnkit.models.parameters import bits


def source(value: Any, imports: set[str]) -> str:
    """Write a value as a Python expression."""
    if isinstance(value, Tensor):
        return _tensor(value, imports)
    if isinstance(value, torch.dtype):
        imports.add("import torch")
        return str(value)
    if isinstance(value, enum.Enum):
        return f"{class_name(type(value), imports)}.{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if attrs.has(type(value)):
        fields = [f"{f.alias}={source(getattr(value, f.name), imports)}" for f in attrs.fields(type(value)) if f.init]
        return f"{class_name(type(value), imports)}({', '.join(fields)})"
    return _nested(value, imports)


def _nested(value: Any, imports: set[str]) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{source(k, imports)}: {source(v, imports)}" for k, v in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({source(sorted(value), imports)})"
    if isinstance(value, list):
        return "[" + ", ".join(source(item, imports) for item in value) + "]"
    if isinstance(value, tuple):
        items = [source(item, imports) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    return f"{class_name(type(value), imports)}()"


def _tensor(tensor: Tensor, imports: set[str]) -> str:
    imports.add("import torch")
    values = tensor.tolist()
    device = "" if tensor.device.type == "cpu" else f', device="{tensor.device}"'
    again = torch.tensor(values, dtype=tensor.dtype)
    if again.is_floating_point():
        again[again.isnan()] = math.nan  # the text "nan" carries neither the sign nor the payload of a NaN
    if torch.equal(bits(again), bits(tensor.cpu())):
        return f"torch.tensor({source(values, imports)}, dtype={tensor.dtype}{device})"
    patterns = bits(tensor)
    return f"torch.tensor({patterns.tolist()}, dtype={patterns.dtype}{device}).view({tensor.dtype})"


def class_name(cls: type, imports: set[str]) -> str:
    """Write the name of a class as it can be imported."""
    module, name = cls.__module__, cls.__qualname__
    if module.startswith("unlearnkit.testing"):
        module = "unlearnkit.testing"
    elif name in unlearnkit.__all__ and getattr(unlearnkit, name) is cls:
        module = "unlearnkit"
    if "<locals>" in name:
        return name.rpartition(".")[2]  # nothing can import it; whoever wrote it knows where it is
    imports.add(f"from {module} import {name.partition('.')[0]}")
    return name
