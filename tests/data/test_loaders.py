"""Batches in an order that depends on the seed and on nothing else."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, TensorDataset

from unlearnkit.data import loader
from unlearnkit.utils.errors import ConfigurationError

DATA = TensorDataset(torch.arange(7), torch.arange(7) * 10)


def order(batches):
    return [x.tolist() for x, _ in batches]


def test_in_the_order_of_the_data():
    assert order(loader(DATA, batch_size=3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_shuffled_loader_yields_the_same_in_every_pass():
    batches = loader(DATA, batch_size=3, shuffle=True, seed=1)
    first = order(batches)
    assert first == order(batches) == order(loader(DATA, batch_size=3, shuffle=True, seed=1))
    assert sorted(itertools.chain(*first)) == list(range(7))
    assert first != order(loader(DATA, batch_size=3, shuffle=True, seed=2))


def test_an_unfinished_pass_changes_nothing():
    batches = loader(DATA, batch_size=3, shuffle=True, seed=1)
    expected = order(batches)
    next(iter(batches))
    assert order(batches) == expected


def test_the_order_does_not_depend_on_the_number_of_workers():
    alone = loader(DATA, batch_size=2, shuffle=True, seed=1)
    helped = loader(DATA, batch_size=2, shuffle=True, seed=1, workers=2)
    assert order(helped) == order(alone)


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_global_random_state_is_neither_read_nor_changed(shuffle):
    batches = loader(DATA, batch_size=2, shuffle=shuffle, seed=1)
    before = torch.get_rng_state()
    first = order(batches)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert order(batches) == first
    torch.set_rng_state(before)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(0, 2**40))
def test_a_fixed_shuffle_is_a_permutation(samples, seed):
    shuffled = loader(torch.arange(samples), batch_size=1, shuffle=True, seed=seed)
    assert sorted(map(int, shuffled)) == list(range(samples))
    assert list(shuffled) == list(shuffled)
    assert len(shuffled) == samples


@pytest.mark.parametrize(
    ("device", "pinned"),
    [(None, False), ("cpu", False), ("cuda", True), (torch.device("cuda", 1), True), ("mps", False)],
)
def test_memory_is_pinned_for_cuda_only(device, pinned):
    assert loader(DATA, batch_size=2, device=device).pin_memory is pinned


def test_shuffling_needs_a_seed():
    with pytest.raises(ConfigurationError, match="expected a seed ≥ 0 when shuffle is on, saw None"):
        loader(DATA, batch_size=2, shuffle=True)
    with pytest.raises(ConfigurationError, match="saw -1"):
        loader(DATA, batch_size=2, shuffle=True, seed=-1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "workers": -1}])
def test_numbers_out_of_range(options):
    with pytest.raises(ConfigurationError, match="expected batch_size ≥ 1 and workers ≥ 0"):
        loader(DATA, **options)


def test_a_data_set_needs_a_length():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    for nothing in (Endless(), TensorDataset(torch.zeros(0))):
        with pytest.raises(ConfigurationError, match="a length of at least 1"):
            loader(nothing, batch_size=1)
