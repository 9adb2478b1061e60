"""Batches of two sets in one pass."""

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler

from unlearnkit import ConfigurationError
from unlearnkit.data import Interleaved, Paired, reshuffled


def test_pairs_repeat_the_forget_set_and_stop_with_the_retain_set():
    pairs = Paired(retain=range(5), forget=["a", "b"])
    assert list(pairs) == list(pairs) == [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a")]
    assert len(pairs) == 5
    assert list(Paired(retain=[1], forget=["a", "b"])) == [(1, "a")]
    assert list(Paired(retain=[], forget=["a"])) == []


@pytest.mark.parametrize("forget", [[], iter([])])
def test_pairs_need_something_to_forget(forget):
    with pytest.raises(ConfigurationError, match="at least one batch of the forget set"):
        list(Paired(retain=[1], forget=forget))


def test_exhausted_iterator_is_an_error_not_an_endless_loop():
    with pytest.raises(ConfigurationError, match="used up"):
        list(Paired(retain=[1, 2, 3], forget=iter(["a"])))


@pytest.mark.parametrize(("kept", "forgotten"), [(4, 1), (1, 4), (7, 3), (3, 3), (0, 2), (2, 0), (0, 0), (100, 7)])
def test_interleaved_yields_every_batch_once_evenly(kept, forgotten):
    mixed = Interleaved(retain=range(kept), forget=range(forgotten))
    seen = list(mixed)
    assert len(seen) == len(mixed) == kept + forgotten
    assert [i for flag, i in seen if not flag] == list(range(kept))
    assert [i for flag, i in seen if flag] == list(range(forgotten))
    for position in range(len(seen)):
        due = (position + 1) * forgotten / len(seen)
        assert abs(sum(flag for flag, _ in seen[: position + 1]) - due) <= 1


def test_loaders_of_unknown_length_alternate():
    mixed = Interleaved(retain=iter(range(3)), forget=iter("ab"))
    assert list(mixed) == [(False, 0), (True, "a"), (False, 1), (True, "b"), (False, 2)]


def flat(batches):
    return [int(i) for batch in batches for i in batch]


def test_a_loader_is_read_in_another_order_with_all_its_settings():
    batches = DataLoader(range(10), batch_size=4, drop_last=True, collate_fn=list)
    again = reshuffled(batches, seed=1)
    assert flat(again) == flat(reshuffled(batches, seed=1))
    assert flat(again) != flat(reshuffled(batches, seed=2))
    assert len(flat(again)) == 8
    assert again.collate_fn is list


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize(
    "batches",
    [
        [[1], [2]],
        DataLoader(range(4), batch_size=2, sampler=RandomSampler(range(4))),
        DataLoader(range(4), batch_size=None),
        DataLoader(Stream(), batch_size=2),
        DataLoader(range(4), batch_sampler=[[0, 1], [3]]),
    ],
)
def test_loaders_with_an_order_of_their_own_are_not_reshuffled(batches):
    assert reshuffled(batches, seed=0) is batches


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    flat(reshuffled(DataLoader(range(8), batch_size=2), seed=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [Paired, Interleaved])
def test_the_parts_of_a_mixture_are_reshuffled(kind):
    parts = {"retain": DataLoader(range(9), batch_size=3), "forget": [["f"]]}
    mixed = reshuffled(kind(**parts), seed=0)
    assert isinstance(mixed, kind)
    assert sorted(flat(mixed.retain)) == list(range(9)) != flat(mixed.retain)
    assert mixed.forget is parts["forget"]
