"""Every operation that is translated, against torch, on the numbers that go wrong: the bits, and what is finite."""

import numpy as np
import pytest
import torch
from compiler import HAS_COMPILER

from unlearnkit.models.parameters import bits
from unlearnkit.unlearning.fused.operations import OPERATIONS, QUESTIONS
from unlearnkit.unlearning.fused.run import Fused
from unlearnkit.unlearning.operands import Averaged, RuleOperands

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")

# Each is selected by its number in F_f, so that all of them are one rule and are compiled once.
NUMBERS = {
    "add": lambda t, r: t + r,
    "torch.add": torch.add,
    "add a constant": lambda t, _: 0.1 + t,
    "sub": lambda t, r: t - r,
    "__rsub__": lambda t, _: 0.3 - t,
    "subtract": torch.subtract,
    "mul": lambda t, r: t * r,
    "multiply": lambda t, _: torch.multiply(t, 3),
    "mul by a truth": lambda t, r: t * (t > r),
    "div": lambda t, r: t / r,
    "divide by a constant": lambda t, _: t.divide(97),
    "true_divide": torch.true_divide,
    "__rtruediv__": lambda t, _: 3 / t,
    "neg": lambda t, _: -t,
    "negative": lambda t, _: t.negative(),
    "abs": lambda t, _: t.abs(),
    "absolute": lambda t, _: torch.absolute(t),
    "reciprocal": lambda t, _: t.reciprocal(),
    "square": lambda t, _: torch.square(t),
    "pow": lambda t, _: t.pow(2),
    "__pow__": lambda t, _: t**2,
    "clamp": lambda t, _: t.clamp(-1, 0.5),
    "clip": lambda t, _: torch.clip(t, min=0.0),
    "clamp_min": lambda t, _: t.clamp_min(-0.5),
    "clamp_max": lambda t, _: torch.clamp_max(t, 0.0),
    "nan_to_num": lambda t, r: (t / r).nan_to_num(),
    "nan_to_num with numbers": lambda t, r: torch.nan_to_num(t / r, nan=1.0, posinf=2.0, neginf=-3.0),
    "where": lambda t, r: torch.where(t > r, 0.0, t),
    "Tensor.where": lambda t, r: t.where(t > r, r),
    "masked_fill": lambda t, r: t.masked_fill(t <= r, 2.0),
    "zeros_like": lambda t, _: torch.zeros_like(t),
    "ones_like": lambda t, _: torch.ones_like(t),
    "full_like": lambda t, _: torch.full_like(t, 0.7),
    "detach": lambda t, _: t.detach(),
    "clone and contiguous": lambda t, _: t.clone().contiguous(),
    "float and to": lambda t, r: (t.float() - r.float()).to(t.dtype),
    "double and type_as": lambda t, r: (t.double() * r.double()).type_as(t),
    "type": lambda t, r: (t > r).type(t.dtype),
    "tensor": lambda t, _: t * torch.tensor(0.7),
}
TRUTHS = {
    "gt": lambda t, r: t > r,
    "greater": torch.greater,
    "ge": lambda t, r: t >= r,
    "greater_equal": lambda t, _: t.greater_equal(0.1),
    "lt": lambda t, r: t < r,
    "less": lambda t, r: t.less(r),
    "le": lambda t, _: t <= 0,
    "less_equal": torch.less_equal,
    "eq": torch.eq,
    "__eq__": lambda t, r: t == r,
    "ne": lambda t, r: t.ne(r),
    "__ne__": lambda t, r: t != r,
    "not_equal": torch.not_equal,
    "logical_and": lambda t, r: torch.logical_and(t > 0, r > 0),
    "__and__": lambda t, r: (t > 0) & (r > 0),
    "bitwise_and": lambda t, r: (t > 0).bitwise_and(r > 0),
    "logical_or": lambda t, r: (t > 0).logical_or(r > 0),
    "__or__": lambda t, r: (t > 0) | (r > 0),
    "bitwise_or": lambda t, r: torch.bitwise_or(t > 0, r > 0),
    "logical_xor": lambda t, r: torch.logical_xor(t > 0, r > 0),
    "__xor__": lambda t, r: (t > 0) ^ (r > 0),
    "bitwise_xor": lambda t, r: torch.bitwise_xor(t > 0, r > 0),
    "logical_not": lambda t, r: torch.logical_not(t > r),
    "__invert__": lambda t, r: ~(t > r),
    "bitwise_not": lambda t, r: torch.bitwise_not(t > r),
    "mul of truths": lambda t, r: (t > 0) * (r > 0),
    "isnan": lambda t, r: torch.isnan(t / r),
    "isinf": lambda t, r: torch.isinf(t / r),
    "isfinite": lambda t, r: torch.isfinite(t / r),
}

ASKED = {name: lambda t, _, name=name: getattr(torch, name)(t) for name in QUESTIONS}
ASKED |= {"pow 3": lambda t, _: t**3, "pow -0.5": lambda t, _: t.pow(-0.5), "twice": lambda t, r: (t.exp() + r).log()}
ASKED |= {"of a double": lambda t, r: (t.double() * r.double()).exp().to(t.dtype)}


def special(dtype):
    """The numbers at the edges of a dtype, and some in between."""
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    positive = [
        0.0,
        info.smallest_normal * info.eps,
        tiny / 2,
        tiny,
        tiny * 3,
        1e-20,
        0.1,
        1 / 3,
        0.5,
        1 - info.eps / 2,
    ]
    positive += [1.0, 1 + info.eps, 1.5, 2.0, 97.0, 1e10, info.max / 3, info.max]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(12, generator=generator, dtype=dtype) * torch.logspace(-30, 30, 12, dtype=dtype)
    return torch.cat([torch.tensor([s * x for x in positive for s in (1, -1)], dtype=dtype), drawn])


def finite(x):
    return torch.where(torch.isfinite(x), x, 7.0)


def edited(rule, dtype, theta, forget, reference):
    """Return what compiled code makes of it; it must not leave anything to torch."""
    fused = Fused(rule, who="a rule", required=True)
    result = theta.clone()

    def plainly(t, f, r):
        return rule(t, f.total, None if r is None else r.total)

    [changed] = fused.run([RuleOperands(result, Averaged(total=forget), Averaged(total=reference))], plainly=plainly)
    assert changed == np.count_nonzero(bits(theta).numpy() != bits(result).numpy())
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", [NUMBERS, TRUTHS, ASKED], ids=["numbers", "truths", "asked"])
def test_the_bits_are_those_of_torch(group, dtype):
    values = special(dtype)
    pairs = torch.cartesian_prod(values, values).repeat(len(group), 1)
    theta, reference = pairs.t().contiguous()
    forget = torch.arange(len(group), dtype=dtype).repeat_interleave(len(values) ** 2)

    def rule(t, f, r):
        result = torch.zeros_like(t)
        for number, operation in enumerate(group.values()):
            made = operation(t, r)
            result = torch.where(f == number, torch.where(made, t, 5.0) if group is TRUTHS else finite(made), result)
        return result

    got, want = edited(rule, dtype, theta, forget, reference), rule(theta, forget, reference)
    wrong = (bits(got) != bits(want)).nonzero().flatten().tolist()
    names = list(group)
    assert not [
        (names[int(forget[i])], theta[i].item(), reference[i].item(), got[i].item(), want[i].item()) for i in wrong[:5]
    ]


@pytest.mark.parametrize(("name", "operation"), [("minimum", torch.minimum), ("maximum", torch.maximum)])
def test_the_smaller_and_the_larger(name, operation):
    assert name in OPERATIONS
    values = special(torch.float32)
    theta, reference = torch.cartesian_prod(values[values != 0], values).t().contiguous()
    args = theta, torch.ones_like(theta), reference
    want = operation(theta, reference)
    assert torch.equal(bits(edited(lambda t, _, r: operation(t, r), torch.float32, *args)), bits(want))
    nan = edited(lambda t, _, r: torch.nan_to_num(operation(t / 0, r), nan=7, posinf=8, neginf=9), torch.float32, *args)
    assert torch.equal(nan, torch.nan_to_num(operation(theta / 0, reference), nan=7, posinf=8, neginf=9))


def test_two_zeros_of_different_sign_are_left_to_torch():
    def rule(t, _, r):
        return torch.minimum(t, r)

    fused, zeros = Fused(rule, who="a rule"), torch.zeros(3)
    theta = -zeros
    trio = RuleOperands(theta, Averaged(total=zeros), Averaged(total=zeros))
    assert fused.run([trio], plainly=lambda t, f, r: rule(t, f, r.total)) == [None]
    assert bool(torch.signbit(theta).all())


def test_no_operation_is_untested():
    names = " ".join((*NUMBERS, *TRUTHS, *ASKED))
    assert {name for name in OPERATIONS if name not in names} == {"minimum", "maximum"}
