"""Owners of rows: derived from gradients, and recognised as layouts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.importance.fisher.engine.call_plan import Layout, Order, Scattered, UnprovenError, recognise
from unlearnkit.importance.fisher.engine.row_owners import NOBODY, coefficients, exponents, owners_of, row_maxima

LAYOUTS = st.builds(Layout, order=st.sampled_from(Order), rows=st.integers(1, 5))


@given(LAYOUTS, st.integers(2, 5))
def test_samples_first_gathers_each_samples_rows(layout, samples):
    shape = (*layout.length(samples), 3)
    owner = torch.arange(samples).expand(layout.rows, samples)
    owner = owner if layout.order is Order.SECOND else (owner.t() if layout.order is Order.MAJOR else owner).reshape(-1)
    tensor = owner.unsqueeze(-1).expand(shape)
    view = layout.samples_first(tensor, samples)
    assert view.shape == (samples, layout.rows, 3)
    assert all(bool((view[i] == i).all()) for i in range(samples))


def owned(layout, samples):
    """The owner of each row, shape (rows,) or (rows, second dimension)."""
    owners = torch.zeros(*layout.length(samples), 3, dtype=torch.long)
    for sample in range(samples):
        layout.samples_first(owners, samples)[sample] = sample
    return owners[..., 0] if layout.order is Order.SECOND else owners


@given(LAYOUTS, st.integers(2, 4))
def test_recognised_layout_matches_the_owners(layout, samples):
    owners = owned(layout, samples)
    found = recognise(owners, samples, free_rows=True)
    assert found is not None
    assert found.agrees(owners, samples)
    assert torch.equal(found.samples_first(owners, samples), layout.samples_first(owners, samples))


def test_rows_that_are_no_multiple_of_the_samples_have_no_layout():
    assert recognise(torch.tensor([0, 0, 0, 1, 1]), 2, free_rows=True) is None


@pytest.mark.parametrize("free_rows", [True, False])
def test_no_or_ambiguous_owners_give_no_layout(free_rows):
    assert recognise(torch.full((6, 3), NOBODY), 3, free_rows=free_rows) is None


def test_one_row_that_fits_several_layouts_gives_no_layout():
    """Row 0 of 6 belongs to sample 0 in a sample-first and in a time-first layout, so neither is chosen."""
    owners = torch.tensor([0, *[NOBODY] * 5])
    assert recognise(owners, 3, free_rows=True) is None
    assert recognise(owners[:3], 3, free_rows=True) == Layout(order=Order.MAJOR, rows=1)


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=12))
def test_scattered_rows_are_gathered_by_their_owner(numbers):
    owners = torch.tensor(numbers)
    rows = torch.arange(1.0, len(owners) + 1).unsqueeze(1)
    found = Scattered(owners, 4).gradient(rows, 4)
    for sample in range(4):
        mine = found[sample][found[sample] != 0].tolist()
        assert mine == [float(i + 1) for i, owner in enumerate(numbers) if owner == sample]


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [2, 3, 9, 70])
def test_owners_follow_from_the_ratio_of_two_gradients(samples, dtype):
    torch.manual_seed(0)
    true = torch.cat([torch.randperm(samples), torch.tensor([NOBODY])])
    g = (torch.rand(samples + 1, 4, dtype=torch.float64) + 0.5).to(dtype)
    g[true < 0] = 0
    scaled = [c[true] for c in coefficients(samples, exponents(dtype), g)]
    seen = [row_maxima(g * c.unsqueeze(1), dims=1) for c in scaled]
    assert torch.equal(owners_of(row_maxima(g, dims=1), seen, samples, dtype), true)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_row_of_two_samples_has_no_owner(dtype, share):
    torch.manual_seed(0)
    one, other = torch.rand(2, 5, 4, dtype=torch.float64) + 0.5
    (c,) = coefficients(5, exponents(dtype), one)
    mixed = one * c[torch.arange(5)].unsqueeze(1) + share * other * c[torch.arange(5).flip(0)].unsqueeze(1)
    with pytest.raises(UnprovenError, match="belong to other samples as well"):
        owners_of(row_maxima(one + share * other, dims=1), [row_maxima(mixed, dims=1)], 5, dtype)


def test_a_gradient_without_elements_has_rows_without_owners():
    assert row_maxima(torch.zeros(3, 2, 0), dims=2).tolist() == [[0, 0]] * 3
