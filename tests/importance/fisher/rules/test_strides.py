"""Every kernel on expanded, sliced, permuted and oddly strided tensors."""

import pytest
import torch
from compiler import HAS_COMPILER
from fisher_oracle import check_plan, weight_gradients_of_each
from hypothesis import given, settings
from hypothesis import strategies as st
from unlearnkit_cpu_kernels import ConvolutionSquares, LinearSquares

from unlearnkit.importance.fisher.engine.kernel import ConvGeometry, KernelOperands
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.importance.fisher.rules.convolution import conv_plans
from unlearnkit.importance.fisher.rules.linear import outer_plans

COMPILED = [False, True] if HAS_COMPILER else [False]


def slot(w):
    return Totals({"w": w}, double=False, memory=1 << 20).slot("w")


def compiled_plans(kernel, g, x, options=None):
    plan = kernel.plan(KernelOperands(layer=kernel.layer, g=g, x=x, options=options))
    return [] if plan is None else [plan]


def permuted(t, order):
    """The same values, permuted in memory."""
    back = [order.index(i) for i in range(t.dim())]
    return t.permute(order).contiguous().permute(back)


def cut(t, steps):
    """The same values as a strided slice of a larger tensor."""
    held = torch.full([n * step + 1 for n, step in zip(t.shape, steps, strict=True)], 1e9)
    view = held[tuple(slice(1, None, step) for step in steps)][tuple(slice(0, n) for n in t.shape)]
    return view.copy_(t)


def odd(t, stride):
    """Other strides for dimensions of one element: they must not matter."""
    return t.as_strided(t.shape, [stride if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)])


def repeated(t, dimension):
    """One element repeated along a dimension: a stride of 0."""
    return t.narrow(dimension, 0, 1).expand(t.shape)


@st.composite
def lying(draw, t):
    """Return a tensor in a random memory layout; the repeated dimension is random too."""
    dims = range(t.dim())
    if draw(st.booleans()):
        t = permuted(t, draw(st.permutations(dims)))
    if draw(st.booleans()):
        t = cut(t, [draw(st.integers(1, 2)) for _ in dims])
    if draw(st.booleans()):
        t = repeated(t, draw(st.sampled_from(dims)))
    return odd(t, draw(st.sampled_from([0, 1, 7, 10**9])))


@settings(max_examples=40)
@given(st.data(), st.integers(1, 3), st.integers(2, 5), st.sampled_from([1, 3, 16, 33]), st.sampled_from([1, 2, 17]))
@pytest.mark.parametrize("compiled", COMPILED)
def test_rows(compiled, data, samples, rows, out, inner):
    torch.manual_seed(out)
    g, a = (data.draw(lying(torch.randn(samples, rows, n))) for n in (out, inner))
    plans = compiled_plans(LinearSquares(), g, a) if compiled else outer_plans(slot(torch.zeros(out, inner)), g, a)
    for kernel in plans:
        check_plan(kernel, torch.einsum("nto,nti->noi", g.double(), a.double()))


@st.composite
def problems(draw):
    dims, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 2]))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dims))  # noqa: E731
    kernel, stride, dilation, pad = each(1, 3), each(1, 2), each(1, 2), each(0, 2)
    size = tuple(d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True))
    geometry = ConvGeometry(
        kernel=kernel, stride=stride, padding=tuple((p, p) for p in pad), dilation=dilation, groups=groups
    )
    out = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(size, pad, dilation, kernel, stride, strict=True)
    )
    samples, rows = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    channels, outs = groups * draw(st.sampled_from([1, 3, 8])), groups * draw(st.sampled_from([2, 16, 19]))
    torch.manual_seed(channels)
    x = draw(lying(torch.randn(samples, rows, channels, *size)))
    g = draw(lying(torch.randn(samples, rows, outs, *out)))
    return geometry, x, g, torch.zeros(outs, channels // groups, *kernel)


@settings(max_examples=60)
@given(problems())
@pytest.mark.parametrize("compiled", COMPILED)
def test_convolutions(compiled, problem):
    geometry, x, g, w = problem
    plans = compiled_plans(ConvolutionSquares(), g, x, geometry) if compiled else conv_plans(slot(w), g, x, geometry)
    for kernel in plans:
        check_plan(kernel, weight_gradients_of_each(geometry, w, x, g))
