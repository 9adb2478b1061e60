"""Batches in an order that depends on the seed and on nothing else."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from unlearnkit_methods.jit import JustInTime
from unlearnkit_methods.prune import Prune

from unlearnkit import CrossEntropy, DiagonalFisher, EvaluationInputs, Pipeline, UnlearningInputs, UnlearnKitWarning
from unlearnkit.data import loader, reshuffled
from unlearnkit.data.batches import lost_samples
from unlearnkit.data.loaders import draw_samples
from unlearnkit.distributed import Ranks
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.importance import fisher_statistics
from unlearnkit.importance.multi_process import estimate_resumable
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


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.ones(2), 0)] * 4)


PAIRS = TensorDataset(torch.randn(64, 2), torch.arange(64) % 2)
ONES = torch.ones(64)
LOSSES = {
    "drop_last leaves out 16 of 64 samples": DataLoader(PAIRS, 24, drop_last=True),
    "drop_last leaves out 4 of 64 samples": DataLoader(
        PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 10, drop_last=True)
    ),
    "drop_last leaves out 1 of 7 samples": DataLoader(Subset(PAIRS, range(7)), 3, drop_last=True),
    "64 of 64 samples are drawn with replacement": DataLoader(PAIRS, 16, sampler=WeightedRandomSampler(ONES, 64)),
    "9 of 64 samples are drawn with replacement": DataLoader(
        PAIRS, 3, sampler=RandomSampler(PAIRS, replacement=True, num_samples=9)
    ),
    "the sampler draws 60 times from 64 samples": DataLoader(PAIRS, 6, sampler=RandomSampler(PAIRS, num_samples=60)),
    "the sampler draws 128 times from 64": DataLoader(PAIRS, 6, sampler=RandomSampler(PAIRS, num_samples=128)),
    "the sampler draws 3 times from 2 samples": DataLoader(PAIRS, 2, sampler=[3, 3, 1]),
    "the sampler draws 4 times from 2 samples": DataLoader(
        PAIRS, 2, sampler=SubsetRandomSampler(torch.tensor([3, 1, 3, 1]))
    ),
    "the sampler draws 5 times from 4 samples": DataLoader(PAIRS, batch_sampler=[[0, 1, 2], [3, 0]]),
    "the sampler draws 9 times from 64 samples": DataLoader(
        PAIRS, 3, sampler=WeightedRandomSampler(ONES, 9, replacement=False)
    ),
    "the sampler reads the part of one of 2 processes": DataLoader(
        PAIRS, 8, sampler=DistributedSampler(PAIRS, num_replicas=2, rank=0)
    ),
    "the Subset lists 4 samples, 3 of them different": DataLoader(Subset(PAIRS, [0, 0, 1, 2]), 2),
    "2 workers read a stream, each of them perhaps all of it": DataLoader(Stream(), 2, num_workers=2),
    "drop_last leaves out up to 2 samples of a stream": DataLoader(Stream(), 3, drop_last=True),
}


@pytest.mark.parametrize("said", LOSSES)
def test_loaders_that_leave_out_or_repeat_samples_are_refused_for_a_forget_set_and_said_for_another(
    said, tmp_path, record_property
):
    record_property("tried", ("loaders that leave out or repeat samples", 1))
    batches, model = LOSSES[said], nn.Linear(2, 2)
    with pytest.raises(ConfigurationError, match=f"forget set: expected a loader that reads each sample once: {said}"):
        DiagonalFisher().estimate(model, batches, objective=CrossEntropy(), role="forget")
    with pytest.raises(ConfigurationError, match=f"forget_data: expected a loader that reads each sample once: {said}"):
        JustInTime(epochs=1).unlearn(model, UnlearningInputs(forget_data=batches))
    with pytest.raises(ConfigurationError, match=said):
        estimate_resumable(
            DiagonalFisher(), model, batches, objective=CrossEntropy(), checkpoint=tmp_path / "part", role="forget"
        )
    with pytest.raises(ConfigurationError, match=said):
        fisher_statistics(model, batches, objective=CrossEntropy(), key=-1, role="forget")
    if batches.num_workers:
        batches = DataLoader(PAIRS, 24, drop_last=True)
        said = "16 of 64"
    with pytest.warns(UnlearnKitWarning, match=said) as issued:
        DiagonalFisher().estimate(model, batches, objective=CrossEntropy(), role="retain")
    assert len(issued) == 1


@pytest.mark.parametrize(
    "batches",
    [
        [(torch.ones(2, 2), torch.tensor([0, 1]))],
        DataLoader(PAIRS, 24),
        DataLoader(PAIRS, 24, shuffle=True),
        DataLoader(PAIRS, 16, drop_last=True),
        DataLoader(PAIRS, batch_size=None),
        DataLoader(PAIRS, 4, sampler=SubsetRandomSampler(range(9))),
        DataLoader(PAIRS, 4, sampler=[3, 1, 2]),
        DataLoader(PAIRS, batch_sampler=[[3, 1], [2]]),
        DataLoader(PAIRS, 4, sampler=DistributedSampler(PAIRS, num_replicas=1, rank=0)),
        DataLoader(Stream(), 2, num_workers=1),
        loader(PAIRS, batch_size=5, shuffle=True, seed=0),
    ],
    ids=lambda batches: type(batches).__name__,
)
def test_loaders_that_read_each_sample_of_theirs_once_are_fine(batches):
    assert lost_samples(batches) == ""


def test_a_loader_that_changes_its_batches_is_not_made_again():
    class Doubled(DataLoader):
        def __iter__(self):
            return (2 * batch for batch in super().__iter__())

    batches = Doubled(torch.arange(1, 7), batch_size=2)
    assert reshuffled(batches, seed=0) is batches
    drawn, total = draw_samples(batches, count=6, seed=0)
    assert (torch.cat([*drawn]).tolist(), total) == ([2, 4, 6, 8, 10, 12], 6)
    assert [batch.tolist() for batch in Ranks(rank=1, size=2).share(batches)] == [[6, 8]]


class Stream(IterableDataset):
    def __len__(self):
        return 4

    def __iter__(self):
        return iter(torch.arange(1, 5))


@pytest.mark.parametrize(
    "batches",
    [DataLoader(Stream(), batch_size=2), DataLoader([torch.tensor([1, 2]), torch.tensor([3, 4])], batch_size=None)],
    ids=["a stream with a length", "a data set of batches"],
)
def test_samples_are_drawn_from_the_batches_where_the_data_set_cannot_be_indexed_by_sample(batches):
    drawn, total = draw_samples(batches, count=3, seed=0)
    assert total == 4
    assert set(torch.cat([*drawn]).tolist()) < {1, 2, 3, 4}


def test_drawn_samples_are_read_by_workers_that_are_started_alike():
    drawn, _ = draw_samples(DataLoader(torch.arange(8), worker_init_fn=print), count=3, seed=0)
    assert drawn.worker_init_fn is print


def test_a_data_set_in_place_of_batches_is_refused_with_what_to_pass():
    model = nn.Linear(2, 2)
    said = r"saw the data set TensorDataset: pass unlearnkit.data.loader\(data, batch_size=…\)"
    with pytest.raises(ConfigurationError, match=said):
        Pipeline(unlearner=Prune()).run(model, forget=PAIRS)
    with pytest.raises(ConfigurationError, match=said):
        JustInTime(epochs=1).unlearn(model, UnlearningInputs(forget_data=PAIRS))
    with pytest.raises(ConfigurationError, match=said):
        EvaluationInputs(model=model, splits={"forget-train": PAIRS})
    with pytest.raises(ConfigurationError, match=said):
        loss_and_accuracy(model, PAIRS)
