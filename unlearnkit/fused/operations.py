"""The operations of torch that a rule may be made of to be compiled, each as an expression of C++.

Each gives the bits that torch gives, whatever the place of a number in its tensor: operations that IEEE 754 rounds
correctly, comparisons and choices. So exp and log are not among them, nor is √, which torch takes from a library that
may miss the last bit. Where torch itself answers by the place (is +0 or −0 the smaller?), the expression calls the
weight odd, and the edit is left to torch.
"""

from collections.abc import Callable, Mapping
from typing import final

import attrs

from unlearnkit.fused.untranslatable import Untranslatable

Operation = Callable[..., str]
_LARGEST = {"float": 3.4028234663852886e38, "double": 1.7976931348623157e308}


@final
@attrs.frozen
class Operand:
    """A value that an operation takes.

    Attributes:
        text: A name in C++.
        kind: ``float``, ``double`` or ``bool``.
        value: Of a constant; None when it depends on the weight.
        working: ``float`` or ``double``: what the operation computes in.
    """

    text: str
    kind: str
    value: float | None = None
    working: str = ""

    @property
    def number(self) -> str:
        """The value as a number to compute with: a truth is 0 or 1."""
        if self.value is not None and _LARGEST[self.working] < abs(self.value) < float("inf"):
            raise Untranslatable(f"a constant of {self.value} for {self.working}")
        return self.text if self.kind == self.working else f"{self.working}({self.text})"

    @property
    def truth(self) -> str:
        """The value as a truth, which it must be."""
        if self.kind != "bool":
            raise Untranslatable("a choice by something other than a comparison")
        return self.text


def _between(sign: str) -> Operation:
    return lambda input, other: f"{input.number} {sign} {other.number}"  # noqa: A006 - torch's names, as rules use them


def _logical(sign: str) -> Operation:
    return lambda input, other: f"{input.truth} {sign} {other.truth}"  # noqa: A006


def _of(pattern: str) -> Operation:
    return lambda input: pattern.format(input.number, input.working)  # noqa: A006


def _power(input: Operand, exponent: Operand) -> str:  # noqa: A002
    if exponent.value != 2:  # the one that torch multiplies out
        raise Untranslatable("a power other than 2")
    return f"{input.number} * {input.number}"


def _where(condition: Operand, input: Operand, other: Operand) -> str:  # noqa: A002
    return f"{condition.truth} ? {input.number} : {other.number}"


def _clamp(input: Operand, min: Operand | None = None, max: Operand | None = None) -> str:  # noqa: A002
    if any(bound is not None and bound.value is None for bound in (min, max)):
        raise Untranslatable("a bound that depends on the weight")
    text = input.number if min is None else f"at_least({input.number}, {min.number})"
    return text if max is None else f"at_most({text}, {max.number})"


def _nan_to_num(
    input: Operand,  # noqa: A002
    nan: Operand | None = None,
    posinf: Operand | None = None,
    neginf: Operand | None = None,
) -> str:
    largest = f"std::numeric_limits<{input.working}>::max()"
    defaults = ((nan, f"{input.working}(0)"), (posinf, largest), (neginf, f"-{largest}"))
    numbers = [default if given is None else given.number for given, default in defaults]
    return f"nan_to_num({input.number}, {', '.join(numbers)})"


_ALIKE: Mapping[tuple[str, ...], Operation] = {
    ("add",): _between("+"),
    ("sub", "subtract"): _between("-"),
    ("__rsub__",): lambda input, other: f"{other.number} - {input.number}",  # noqa: A006
    ("mul", "multiply"): _between("*"),
    ("div", "divide", "true_divide"): _between("/"),
    ("__rtruediv__",): lambda input, other: f"(1 / {input.number}) * {other.number}",  # noqa: A006
    ("neg", "negative"): _of("-{0}"),
    ("abs", "absolute"): _of("std::abs({0})"),
    ("reciprocal",): _of("1 / {0}"),
    ("square",): _of("{0} * {0}"),
    ("pow", "__pow__"): _power,
    ("clamp", "clip", "clamp_min"): _clamp,
    ("clamp_max",): lambda input, max: _clamp(input, None, max),  # noqa: A006
    ("minimum",): lambda input, other: f"smaller({input.number}, {other.number}, odd)",  # noqa: A006
    ("maximum",): lambda input, other: f"larger({input.number}, {other.number}, odd)",  # noqa: A006
    ("nan_to_num",): _nan_to_num,
    ("where",): _where,
    ("masked_fill",): lambda input, mask, value: _where(mask, value, input),  # noqa: A006
    ("zeros_like",): lambda input, **_: "0",  # noqa: A006, ARG005
    ("ones_like",): lambda input, **_: "1",  # noqa: A006, ARG005
    ("full_like",): lambda input, fill_value: fill_value.number,  # noqa: A006, ARG005
    ("detach", "clone", "contiguous", "float", "double"): lambda input: input.text,  # noqa: A006
    ("to", "type", "type_as"): lambda input, *_, **__: input.text,  # noqa: A006
    ("gt", "greater"): _between(">"),
    ("ge", "greater_equal"): _between(">="),
    ("lt", "less"): _between("<"),
    ("le", "less_equal"): _between("<="),
    ("eq", "__eq__"): _between("=="),
    ("ne", "__ne__", "not_equal"): _between("!="),
    ("logical_and", "__and__", "bitwise_and"): _logical("&"),
    ("logical_or", "__or__", "bitwise_or"): _logical("|"),
    ("logical_xor", "__xor__", "bitwise_xor"): _logical("^"),
    ("logical_not", "__invert__", "bitwise_not"): lambda input: f"!{input.truth}",  # noqa: A006
    ("isnan",): _of("{0} != {0}"),
    ("isinf",): _of("std::abs({0}) == {1}(infinity)"),
    ("isfinite",): _of("std::abs({0}) < {1}(infinity)"),
}
OPERATIONS: Mapping[str, Operation] = {name: operation for names, operation in _ALIKE.items() for name in names}
"""By the name of the function, or of the tensor's method."""
