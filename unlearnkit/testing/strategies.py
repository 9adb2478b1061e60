"""Hypothesis strategies for tensors of at most 8 elements, importances, inputs of rules and the options of methods."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import ConfigurationError, Importance, Unlearner
from unlearnkit.models.parameters import bits
from unlearnkit.testing.cases import RuleInputs
from unlearnkit.utils.options import Option, options_of

U = TypeVar("U", bound=Unlearner)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = ((1,), (2,), (3,), (8,), (2, 3), (), (2, 2, 2))
_FOLDED: dict[int, list[tuple[int, ...]]] = {
    1: [(), (), ()],  # scalars are rare enough: one row is drawn seldom
    2: [(1, 2)],
    3: [(3, 1)],
    4: [(2, 2)],
    6: [(2, 3), (3, 2)],
    8: [(2, 4), (2, 2, 2)],
}
_WIDTHS: dict[torch.dtype, Literal[16, 32, 64]] = {torch.float64: 64, torch.float16: 16}  # others: 32
_LARGEST, _SMALLEST = 2.0**10, 2.0**-10


def shapes() -> st.SearchStrategy[tuple[int, ...]]:
    """Draw a shape of at most 8 elements, () included; shrinks to one element."""
    return st.sampled_from(SHAPES)


@st.composite
def tensors(
    draw: st.DrawFn,
    *,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (3,),
    elements: st.SearchStrategy[float] | None = None,
    finite: bool = True,
) -> Tensor:
    """Draw a tensor over the whole range of its dtype, −0 and subnormal numbers included."""
    size = math.prod(shape)
    if elements is None:
        elements = _any_number(dtype, finite=finite)
    return _tensor(draw, draw(st.lists(elements, min_size=size, max_size=size)), dtype, finite=finite).reshape(shape)


def _tensor(draw: st.DrawFn, values: Sequence[float], dtype: torch.dtype, *, finite: bool) -> Tensor:
    """Round to a dtype; one value may become a signalling NaN, which no float of Python can be."""
    tensor, limits = torch.tensor(values, dtype=torch.float64).to(dtype), torch.finfo(dtype)
    if finite:  # Hypothesis has no bfloat16: a float32 may round to infinity
        return tensor.clamp(limits.min, limits.max)
    if draw(st.booleans()):
        bits(tensor)[draw(st.integers(0, len(values) - 1))] = bits(torch.tensor([math.inf], dtype=dtype))[0] + 1
    return tensor


@cache  # making a strategy costs more than drawing from it
def _any_number(dtype: torch.dtype, *, finite: bool) -> st.SearchStrategy[float]:
    limits = torch.finfo(dtype)
    ends = (0.0, -0.0, 1.0, -1.0, limits.max, limits.min, limits.tiny)
    width = _WIDTHS.get(dtype, 32)
    return st.sampled_from(ends) | st.floats(width=width, allow_nan=not finite, allow_infinity=not finite)


@cache
def _any_total(dtype: torch.dtype, *, moderate: bool = False) -> st.SearchStrategy[float]:
    """Draw importances, with many ties and zeros; moderate ones stay away from under- and overflow."""
    low, high = (2.0**-20, 2.0**20) if moderate else (0.0, float(torch.finfo(torch.float32).max))
    return st.sampled_from((0.0, 1.0, 2.0, 10.0, high)) | st.floats(low, high, width=_WIDTHS.get(dtype, 32))


@st.composite
def importances(
    draw: st.DrawFn, *, like: dict[str, tuple[int, ...]] | None = None, dtype: torch.dtype = torch.float32
) -> Importance:
    """Draw an importance."""
    if like is None:
        like = {f"p{i}": draw(shapes()) for i in range(draw(st.integers(1, 3)))}
    total = _any_total(dtype)
    totals = {name: draw(tensors(dtype=dtype, shape=shape, elements=total)) for name, shape in like.items()}
    return Importance(totals=totals, count=draw(st.integers(1, 4)))


@st.composite
def rule_inputs(
    draw: st.DrawFn,
    *,
    weights: Sequence[torch.dtype] = DTYPES,
    finite: bool = True,
    moderate: bool = False,
    extra: st.SearchStrategy[Any] | None = None,
) -> RuleInputs:
    """Draw what an elementwise rule gets: θ, F_f and F_r of one shape."""
    dtype, kind = draw(st.sampled_from(list(weights))), draw(st.sampled_from((torch.float32, torch.float64)))
    # Weight by weight and the shape last: so a counterexample loses the weights that it does not need.
    rows = draw(_rows(dtype, kind, finite=finite, moderate=moderate))
    theta, forget, reference = zip(*rows, strict=True)
    weight = _tensor(draw, theta, dtype, finite=finite)
    shape = draw(st.sampled_from([(len(rows),), *_FOLDED.get(len(rows), ())]))
    return RuleInputs(
        theta=weight.reshape(shape),
        forget=torch.tensor(forget, dtype=kind).reshape(shape),
        reference=torch.tensor(reference, dtype=kind).reshape(shape),
        extra=None if extra is None else draw(extra),
    )


@cache
def _rows(
    dtype: torch.dtype, kind: torch.dtype, *, finite: bool, moderate: bool
) -> st.SearchStrategy[list[tuple[float, float, float]]]:
    total = _any_total(kind, moderate=moderate)
    return st.lists(st.tuples(_any_number(dtype, finite=finite), total, total), min_size=1, max_size=8)


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Draw allowed values of an option: its default, its bounds, ∞ where it is allowed, and ordinary numbers."""
    usual = st.nothing() if option.required else st.just(option.default)
    if option.choices:
        return usual | st.sampled_from(option.choices)
    if option.kind is bool:
        return usual | st.booleans()
    if option.kind is float:
        return usual | _numbers(dict(option.bounds))
    if option.kind is int:
        bounds = dict(option.bounds)
        low = max(bounds.get("≥", -8), bounds.get(">", -9) + 1)
        return usual | st.integers(math.ceil(low), math.floor(bounds.get("≤", low + 16)))
    if option.required:
        raise ConfigurationError(
            f"option {option.name!r}: expected unlearnkit.option(), saw a plain field: pass a strategy for it by name"
        )
    return usual


def _numbers(bounds: dict[str, float]) -> st.SearchStrategy[float]:
    low = max(bounds.get("≥", -_LARGEST), bounds.get(">", -_LARGEST))
    high = bounds.get("≤", _LARGEST)
    if high <= low:
        high = low + 1 if "≤" not in bounds else high
    ordinary = st.floats(low, high).filter(
        lambda x: (abs(x) >= _SMALLEST or x == 0.0) and all(x > bound for sign, bound in bounds.items() if sign == ">")
    )
    edges = [bound for sign, bound in bounds.items() if sign != ">"] + ([] if "≤" in bounds else [math.inf])
    return ordinary | st.sampled_from(edges) if edges else ordinary


@st.composite
def from_unlearner(draw: st.DrawFn, /, cls: type[U], **given: st.SearchStrategy[Any]) -> U:
    """Draw an object of a method class with options that it accepts."""
    options = {o.name.lstrip("_"): draw(given[o.name] if o.name in given else values_of(o)) for o in options_of(cls)}
    try:
        return cls(**options)
    except ConfigurationError:  # a validator that looks at several options
        assume(False)
        raise


def two_values(method: Unlearner, names: Sequence[str]) -> st.SearchStrategy[tuple[str, Any, Any]]:
    """Draw the name of an option and two of its values, the smaller one first."""
    options = {option.name: option for option in options_of(method)}

    def pair(name: str) -> st.SearchStrategy[tuple[str, Any, Any]]:
        values = values_of(options[name]).filter(lambda value: value is not None)
        return st.tuples(values, values).map(lambda two: (name, *sorted(two)))

    return st.sampled_from(sorted(names)).flatmap(pair)
