"""Every kernel for several rows per sample, and the products for one, against per-sample gradients in float64."""

import pytest
import torch
from fisher_oracle import check_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.importance.fisher.engine.kernel import KernelPlan
from unlearnkit.importance.fisher.engine.totals import Totals
from unlearnkit.importance.fisher.rules.linear import add_outer, outer_plans

DTYPES = {torch.float32: 1e-5, torch.float64: 1e-13}


def problem(samples, rows, out, inner, dtype, memory=1 << 24, *, signed=False):
    torch.manual_seed(rows)
    g, a = torch.randn(samples, rows, out, dtype=dtype), torch.randn(samples, rows, inner, dtype=dtype)
    named = {"w": torch.zeros(out, inner, dtype=dtype)}
    totals = Totals(named, double=False, memory=memory, signed=signed)
    return g, a, totals, torch.einsum("nto,nti->noi", g.double(), a.double())


@settings(max_examples=40)
@given(
    st.integers(1, 4),
    st.integers(2, 10),
    st.sampled_from([1, 3, 130]),
    st.sampled_from([1, 5, 140]),
    st.sampled_from(list(DTYPES)),
    st.sampled_from([1, 1 << 24]),
)
def test_every_kernel(samples, rows, out, inner, dtype, memory):
    g, a, totals, expected = problem(samples, rows, out, inner, dtype, memory)
    kernels = outer_plans(totals.slot("w"), g, a)
    assert {"outer", "batched"} <= {kernel.name for kernel in kernels}
    assert ("pairs" in {kernel.name for kernel in kernels if kernel.squares_only}) == (rows <= 8)
    for kernel in kernels:
        check_plan(kernel, expected, dtype=dtype, tolerance=DTYPES[dtype])


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("rows", [1, 2])  # one product, and pairs, which must be passed over
def test_squares_absolute_and_signed_sums_are_separate(rows, dtype):
    g, a, squares, expected = problem(4, rows, 6, 5, dtype)
    absolute, signed = squares.empty(), problem(4, rows, 6, 5, dtype, signed=True)[2]
    add_outer(squares.slot("w", absolute=absolute, signed=signed), g, a)
    for totals, terms in ((squares, expected.square()), (absolute, expected.abs()), (signed, expected)):
        assert torch.allclose(totals.result()["w"].double(), terms.sum(0), atol=100 * DTYPES[dtype], rtol=DTYPES[dtype])
    assert float(signed.result()["w"].min()) < 0


def test_squares_only_kernel_is_skipped_when_other_sums_are_requested():
    _, _, totals, _ = problem(1, 1, 2, 2, torch.float32)
    ran = []
    kernels = [
        KernelPlan(name=name, shape=(2, 2), run=lambda _, name=name: ran.append(name), squares_only=name == "squares")
        for name in ("squares", "all")
    ]
    totals.slot("w").run(kernels)
    totals.slot("w", absolute=totals.empty()).run(kernels)
    assert ran == ["squares", "all"]
