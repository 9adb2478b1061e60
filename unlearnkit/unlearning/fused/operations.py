"""The operations of torch that a rule may be made of to be compiled, each as an expression.

An expression is of the language that C++ and the Python of Triton share: + − ×, comparisons and & | ^ between names,
and calls of the functions that ``piece.h`` and ``one_pass.triton`` define. Division is a call: not every language's
sign for it rounds correctly, and not every device divides by a constant.

Each gives the bits that torch gives, whatever the place of a number in its tensor: operations that IEEE 754 rounds
correctly, comparisons and choices. What is rounded otherwise, exp and log and √ (which torch takes from a library that
may miss the last bit), is a `Question`: torch answers it, and what comes before and after it is compiled. Where torch
itself answers by the place (is +0 or −0 the smaller?), a second expression calls the weight odd, and the edit is left
to torch.
"""

from collections.abc import Callable, Mapping
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.unlearning.fused.untranslatable import Untranslatable

_LARGEST = {"float": 3.4028234663852886e38, "double": 1.7976931348623157e308}


@final
@attrs.frozen
class Question:
    """What only torch computes with its own bits."""

    function: str
    constants: tuple[float, ...] = ()

    def answer(self, numbers: Tensor) -> None:
        """Let torch compute."""
        getattr(torch, self.function)(numbers, *self.constants, out=numbers)


@final
@attrs.frozen
class Expression:
    """What an operation makes of a weight."""

    text: str
    odd: str = ""
    question: Question | None = None


Operation = Callable[..., str | Expression]


@final
@attrs.frozen
class Operand:
    """A value that an operation takes."""

    text: str
    kind: str
    value: float | None = None
    working: str = ""

    @property
    def number(self) -> str:
        """The value as a number to compute with: a truth is 0 or 1."""
        if self.value is not None and _LARGEST[self.working] < abs(self.value) < float("inf"):
            raise Untranslatable(f"a constant of {self.value} for {self.working}")
        return self.text if self.kind == self.working else f"{self.working}_({self.text})"

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


def _call(function: str, *, odd: str = "") -> Operation:
    def call(input: Operand, other: Operand) -> Expression:  # noqa: A002
        arguments = f"({input.number}, {other.number})"
        return Expression(f"{function}{arguments}", f"{odd}{arguments}" if odd else "")

    return call


def _of(pattern: str) -> Operation:
    return lambda input: pattern.format(input.number, input.working)  # noqa: A006


def _divide(input: Operand, other: Operand) -> str:  # noqa: A002
    function = "ratio" if other.value is None else "ratio_to_constant"
    return f"{function}({input.number}, {other.number})"


def _asked(function: str) -> Operation:
    return lambda input: Expression(input.number, question=Question(function))  # noqa: A006


def _power(input: Operand, exponent: Operand) -> Expression:  # noqa: A002
    if exponent.value is None:
        raise Untranslatable("a power that depends on the weight")
    if exponent.value == 2:  # torch multiplies it out
        return Expression(f"{input.number} * {input.number}")
    return Expression(input.number, question=Question("pow", (exponent.value,)))


def _where(condition: Operand, input: Operand, other: Operand) -> str:  # noqa: A002
    return f"choose({condition.truth}, {input.number}, {other.number})"


def _clamp(input: Operand, min: Operand | None = None, max: Operand | None = None) -> Expression:  # noqa: A002
    if any(bound is not None and bound.value is None for bound in (min, max)):
        raise Untranslatable("a bound that depends on the weight")
    text, torn = input.number, []
    for function, bound in (("at_least", min), ("at_most", max)):
        if bound is not None:
            torn.append(f"torn({text}, {bound.number})")
            text = f"{function}({text}, {bound.number})"
    return Expression(text, " | ".join(torn))


def _nan_to_num(
    input: Operand,  # noqa: A002
    nan: Operand | None = None,
    posinf: Operand | None = None,
    neginf: Operand | None = None,
) -> str:
    x = input.number
    defaults = ((nan, f"{input.working}_(0)"), (posinf, f"largest({x})"), (neginf, f"negative(largest({x}))"))
    numbers = [default if given is None else given.number for given, default in defaults]
    return f"nan_to_num({x}, {', '.join(numbers)})"


_ALIKE: Mapping[tuple[str, ...], Operation] = {
    ("add",): _between("+"),
    ("sub", "subtract"): _between("-"),
    ("__rsub__",): lambda input, other: f"{other.number} - {input.number}",  # noqa: A006
    ("mul", "multiply"): _between("*"),
    ("div", "divide", "true_divide"): _divide,
    ("__rtruediv__",): lambda input, other: f"ratio({input.working}_(1), {input.number}) * {other.number}",  # noqa: A006
    ("neg", "negative"): _of("negative({0})"),
    ("abs", "absolute"): _of("magnitude({0})"),
    ("reciprocal",): _of("ratio({1}_(1), {0})"),
    ("square",): _of("{0} * {0}"),
    ("pow", "__pow__"): _power,
    ("clamp", "clip", "clamp_min"): _clamp,
    ("clamp_max",): lambda input, max: _clamp(input, None, max),  # noqa: A006
    ("minimum",): _call("smaller", odd="tie"),
    ("maximum",): _call("larger", odd="tie"),
    ("nan_to_num",): _nan_to_num,
    ("where",): _where,
    ("masked_fill",): lambda input, mask, value: _where(mask, value, input),  # noqa: A006
    ("zeros_like",): lambda input, **_: f"{input.working}_(0)",  # noqa: A006
    ("ones_like",): lambda input, **_: f"{input.working}_(1)",  # noqa: A006
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
    ("logical_not", "__invert__", "bitwise_not"): lambda input: f"opposite({input.truth})",  # noqa: A006
    ("isnan",): _of("{0} != {0}"),
    ("isinf",): _of("magnitude({0}) == {1}_(infinity)"),
    ("isfinite",): _of("magnitude({0}) < {1}_(infinity)"),
}
QUESTIONS = (
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p"),
    *("sqrt", "rsqrt", "sigmoid", "tanh", "sin", "cos", "erf"),
)
"""Functions that torch is asked about: of one number each, besides powers."""
OPERATIONS: Mapping[str, Operation] = {
    **{name: operation for names, operation in _ALIKE.items() for name in names},
    **{name: _asked(name) for name in QUESTIONS},
}
"""By the name of the function, or of the tensor's method."""
