"""Layouts: recognised from which rows each sample's loss touches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.importance.fisher.engine.call_plan import Layout, Order, recognise, touched_rows

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


@given(LAYOUTS, st.integers(2, 4))
def test_what_is_recognised_explains_the_evidence(layout, samples):
    shape = (*layout.length(samples), 3)
    touched = []
    for sample in range(samples):
        g = torch.zeros(shape)
        layout.samples_first(g, samples)[sample] = 1.0
        touched.append(touched_rows(g))
    found = recognise(shape, touched, free_rows=True)
    assert found is not None
    assert found.agrees(touched)
    for sample in range(samples):
        g = torch.zeros(shape)
        layout.samples_first(g, samples)[sample] = 1.0
        mine = found.samples_first(g, samples)
        assert float(mine.sum()) == float(mine[sample].sum())


def test_mixed_samples_have_no_layout():
    every = torch.ones(4, dtype=torch.bool)
    assert recognise((4, 2), [every, every], free_rows=True) is None


def test_rows_that_are_no_multiple_of_the_samples_have_no_layout():
    assert recognise((5, 2), [torch.zeros(5, dtype=torch.bool)] * 2, free_rows=True) is None


@pytest.mark.parametrize("free_rows", [True, False])
def test_no_evidence_and_several_possibilities_is_no_answer(free_rows):
    assert recognise((6, 3, 2), [torch.zeros(6, 3, dtype=torch.bool)] * 3, free_rows=free_rows) is None


def test_evidence_of_a_single_row_is_no_answer_where_several_layouts_explain_it():
    """The first of six rows, touched by the first sample: side by side, or every third row? Either, and so neither."""
    one, none = torch.zeros(6, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)
    one[0] = True
    assert recognise((6, 2), [one, none, none], free_rows=True) is None
    assert recognise((3, 2), [one[:3], none[:3], none[:3]], free_rows=True) == Layout(order=Order.MAJOR, rows=1)
