"""Hypothesis strategies for tensors of at most 8 elements, importances, inputs of rules and the options of methods."""

import math
from collections.abc import Sequence
from functools import cache
from operator import itemgetter
from typing import Any, Literal, TypeVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import ConfigurationError, Importance, Unlearner
from unlearnkit.models.parameters import bits
from unlearnkit.testing.cases import RuleInputs
from unlearnkit.utils.options import Option, fits, option_values, options_of

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
_MODERATE = (2.0**-10, 2.0**10)  # times 2^±50, squares are still no overflow of float32


def _often(strategy: st.SearchStrategy[Any], other: st.SearchStrategy[Any], *, times: int) -> st.SearchStrategy[Any]:
    """Draw from the first one so many times as often; shrinks to the other one."""
    # Hypothesis counts equal strategies once: each copy is an object of its own.
    return st.one_of(other, *(st.tuples(strategy).map(itemgetter(0)) for _ in range(times)))


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
    low, high = _MODERATE if moderate else (0.0, float(torch.finfo(torch.float32).max))
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
    around: Sequence[float] = (),
    extra: st.SearchStrategy[Any] | None = None,
) -> RuleInputs:
    """Draw what an elementwise rule gets: θ, F_f and F_r of one shape.

    Numbers ``around`` which something may happen, the `thresholds` of a method, are drawn for θ, F_f and F_f/F_r too:
    exactly, barely less and more, and clearly so.
    """
    dtype, kind = draw(st.sampled_from(list(weights))), draw(st.sampled_from((torch.float32, torch.float64)))
    # Weight by weight and the shape last: so a counterexample loses the weights that it does not need.
    rows = draw(_rows(dtype, kind, finite=finite, moderate=moderate, placed=bool(around)))
    theta, forget, reference = zip(*(_placed(*row, around, moderate=moderate) for row in rows), strict=True)
    weight = _tensor(draw, theta, dtype, finite=finite)
    shape = draw(st.sampled_from([(len(rows),), *_FOLDED.get(len(rows), ())]))
    return RuleInputs(
        theta=weight.reshape(shape),
        forget=torch.tensor(forget, dtype=kind).reshape(shape),
        reference=torch.tensor(reference, dtype=kind).reshape(shape),
        extra=None if extra is None else draw(extra),
    )


_Row = tuple[float, float, float]
_Place = tuple[str, int, float, float]  # what lies at which threshold, times how much, and at which F_r
_PLACES: st.SearchStrategy[_Place] = st.tuples(
    st.sampled_from(("quotient", "quotient", "quotient", "forget", "theta")),
    st.integers(0, 60),
    st.sampled_from((1.0, 1 - 2.0**-20, 1 + 2.0**-20, 0.6, 1.6)),
    st.sampled_from((1.0, 0.01)),
)


@cache
def _rows(
    dtype: torch.dtype, kind: torch.dtype, *, finite: bool, moderate: bool, placed: bool
) -> st.SearchStrategy[list[tuple[_Row, _Place | None]]]:
    total = _any_total(kind, moderate=moderate)
    numbers = st.tuples(_any_number(dtype, finite=finite), total, total)
    row = st.tuples(numbers, _often(_PLACES, st.none(), times=3) if placed else st.none())
    last = row.map(lambda one: [one])
    # Not st.lists: Hypothesis often fails to remove the first element of those from a counterexample.
    more = st.builds(lambda one, rest: [one, *rest][:8], row, st.deferred(lambda: rows))
    rows: st.SearchStrategy[list[tuple[_Row, _Place | None]]] = _often(more, last, times=3)
    return rows


def _placed(row: _Row, place: _Place | None, around: Sequence[float], *, moderate: bool) -> _Row:
    theta, forget, reference = row
    if place is None:
        return row
    what, number, factor, base = place
    value = around[number % len(around)] * factor
    if what == "theta":
        return math.copysign(value, theta), forget, reference
    low, high = _MODERATE if moderate else (0.0, float(torch.finfo(torch.float32).max))
    if what == "quotient":
        return theta, min(max(value * base, low), high), base
    return theta, min(max(value, low), high), reference


def thresholds(method: Unlearner, *further: float) -> tuple[float, ...]:
    """List what an edit may compare θ, F_f or F_f/F_r with: the method's options, further numbers, their inverses."""
    values = [*further, *option_values(method).values()]
    numbers = {abs(float(v)) for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
    found = {x for v in numbers if v and math.isfinite(v) for x in (v, 1 / v) if _SMALLEST**2 <= x <= _LARGEST**2}
    return tuple(sorted(found))


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
    """Draw the name of an option and two of its values, near the method's own and at large, the smaller one first."""
    options = {option.name: option for option in options_of(method)}

    def pair(name: str) -> st.SearchStrategy[tuple[str, Any, Any]]:
        option, value = options[name], getattr(method, name)
        near = [value + i for i in (-2, -1, 1, 2)] if option.kind is int else []
        if option.kind is float:
            scale = abs(value) if value and math.isfinite(value) else 1.0
            near = [scale * 2.0**i for i in range(-3, 4)]
        close = st.sampled_from([v for v in near if fits(v, option)] or [option.default])
        values = _often(close, values_of(option), times=2).filter(lambda value: value is not None)
        return st.tuples(values, values).filter(lambda two: two[0] != two[1]).map(lambda two: (name, *sorted(two)))

    return st.sampled_from(sorted(names)).flatmap(pair)
