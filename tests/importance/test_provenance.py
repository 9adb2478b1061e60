"""Provenance: kinds, roles and the order of data."""

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit import ConfigurationError
from unlearnkit.importance import DataOrder, Fingerprint, Role


def trail_of(*sizes):
    trail = DataOrder()
    for i, size in enumerate(sizes):
        trail = trail.add(torch.full((size, 2), float(i)))
    return trail


def test_sizes_and_order_of_three_batches():
    trail = trail_of(4, 4, 3)
    assert dict(trail.sizes) == {4: 2, 3: 1}
    assert trail.describe() == "2 × 4, 1 × 3"
    assert len(trail.order) == 32


@settings(derandomize=True, deadline=None)
@given(st.permutations([0, 1, 2]))
def test_the_order_of_batches_is_recorded_and_their_sizes_do_not_depend_on_it(order):
    batches = [torch.full((2, 2), float(i)) for i in range(3)]
    trail, straight = DataOrder(), DataOrder()
    for i in range(3):
        trail, straight = trail.add(batches[order[i]]), straight.add(batches[i])
    assert trail.sizes == straight.sizes
    assert (trail == straight) == (order == [0, 1, 2])


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=4), st.lists(st.integers(1, 5), max_size=4))
def test_then_concatenates_and_the_empty_order_is_its_identity(a, b):
    one, two = trail_of(*a), trail_of(*b)
    both = one.then(two)
    assert sum(size * times for size, times in both.sizes.items()) == sum(a) + sum(b)
    assert DataOrder().then(one) == one == one.then(DataOrder())


def test_data_order_is_immutable():
    with pytest.raises(TypeError):
        trail_of(2).sizes[2] = 5
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        trail_of(2).order = "other"


@pytest.mark.parametrize(
    ("one", "two", "differ"),
    [
        ((4, 4), (4, 4, 4, 1), False),
        ((3,), (4, 4), False),  # a single smaller batch: the set is smaller than a batch
        ((2, 2), (4, 4), True),
        ((), (4,), False),
        ((5,), (4, 4), True),
        ((5,), (4,), False),
    ],
)
def test_batch_sizes_differ_for_another_batch_size(one, two, differ):
    forward, backward = trail_of(*one).differences(trail_of(*two)), trail_of(*two).differences(trail_of(*one))
    assert bool(forward) == bool(backward) == differ
    assert all("batch size" in said and "estimate both with one batch size" in said for said in forward)


@settings(derandomize=True, deadline=None)
@given(st.sampled_from([f.name for f in attrs.fields(Fingerprint)]), st.text("ab", min_size=1, max_size=3))
def test_a_difference_is_named_and_equals_have_none(field, value):
    one = Fingerprint()
    other = attrs.evolve(one, **{field: value})
    assert one.differences(one) == []
    assert one.differences(other) == [f"{field}: '' against {value!r}"]
    assert other.differences(one) == [f"{field}: {value!r} against ''"]


def test_a_role_is_known_by_its_name_and_others_are_refused():
    assert Role("forget") is Role.FORGET
    with pytest.raises(ConfigurationError, match=r"role of a data set, saw 'forgot'; did you mean 'forget'\? Known"):
        Role("forgot")
