"""What all methods that train have in common; test_shipped_methods.py runs them by name on the digits."""

import copy
import warnings
from collections import UserList

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unlearnkit import ConfigurationError, Need, PluginManager
from unlearnkit.data.loaders import Paired

NAMES = (
    *("bad-teacher", "capped-neg-grad", "finetune", "jit", "l1-sparse", "neg-grad-plus", "random-label", "reset-last"),
    *("grad-diff", "npo", "retrain", "rmu", "salun", "scrub", "shrink-perturb", "simnpo", "undial", "unsir"),
)
each_method = pytest.mark.parametrize("name", NAMES)


def method(name, **options):
    cls = PluginManager().unlearner(name)
    return cls(**{"epochs": 2, **options})


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@each_method
def test_report_counts_changed_weights_and_the_mode_is_kept(tiny, name):
    before = tiny.model()
    model, report = tiny.unlearned(method(name))
    moved = {
        key: int((was != now).sum())
        for (key, was), now in zip(before.named_parameters(), model.parameters(), strict=True)
    }
    assert {t.name: t.changed for t in report.tensors} == moved
    assert report.changed > 0
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@each_method
def test_steps_take_as_many_batches_as_declared(tiny, name):
    shown = []

    def progress(items, what, total):
        del what, total
        shown.append(isinstance(items, Paired))
        return items

    one = method(name)
    tiny.unlearned(one, progress=progress)
    assert any(shown) == (one.batches_per_step == 2)


@each_method
def test_every_batch_of_a_large_forget_set_is_read(tiny, name):
    one, seen = method(name, epochs=3), []

    class Watched(UserList):
        def __iter__(self):
            for number, batch in enumerate(self.data):
                seen.append(number)
                yield batch

    tiny.unlearned(one, forget_data=Watched(tiny.data(1, 2, 2, 2, 2, 2)), retain_data=tiny.data(2, 4, 4))
    if Need.FORGET_DATA in one.needs:
        assert set(seen) == set(range(5))


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.samples = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.samples)


@each_method
def test_streams_without_a_length_are_read(tiny, name):
    forget, retain = (DataLoader(Stream(*data[0]), batch_size=4) for data in (tiny.data(1, 8), tiny.data(2, 12)))
    _, report = tiny.unlearned(method(name), forget_data=forget, retain_data=retain)
    assert report.changed > 0
    with pytest.raises(ConfigurationError, match="batches whose number is known"):
        tiny.unlearned(method(name, schedule="one-cycle"), forget_data=forget, retain_data=retain)


@each_method
def test_the_same_seed_gives_the_same_bits(tiny, name):
    results = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        results.append(state(tiny.unlearned(method(name), seed=0)[0]))
    assert same(*results)


@each_method
def test_frozen_parameters_keep_their_bits(tiny, name):
    def freeze(model):
        model[0].weight.requires_grad_(requires_grad=False)
        model[4].bias.requires_grad_(requires_grad=False)

    before = tiny.model()
    model, report = tiny.unlearned(method(name), prepare=freeze)
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[4].bias, before[4].bias)
    assert report.changed > 0


@each_method
def test_inputs_and_a_copy_of_the_model_are_not_changed(tiny, name):
    model = tiny.model()
    other = copy.deepcopy(model)
    inputs = tiny.inputs(model)
    data = copy.deepcopy((inputs.forget_data, inputs.retain_data))
    method(name).unlearn(model, inputs)
    for one, now in zip(data, (inputs.forget_data, inputs.retain_data), strict=True):
        assert all(torch.equal(a, b) for x, y in zip(one, now, strict=True) for a, b in zip(x, y, strict=True))
    assert same(state(other), state(tiny.model()))


@each_method
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_batch_size_works_with_batch_norm(tiny, name, mode):
    """Of 7 and 9 samples, some sizes leave a last batch of one sample in either set, or in both."""
    fixed = {"retrain": "train", "reset-last": "train", "jit": "eval"}
    chosen = method(name, epochs=1, **({} if name in fixed else {"mode": mode}))
    sets = {Need.FORGET_DATA: tiny.data(1, 7), Need.RETAIN_DATA: tiny.data(2, 9)}
    for size in range(2, 11):
        forget, retain = (DataLoader(TensorDataset(*data[0]), batch_size=size) for data in sets.values())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, report = tiny.unlearned(chosen, forget_data=forget, retain_data=retain)
        assert report.changed
        said = sum("batches of one sample were left out" in str(w.message) for w in caught)
        read = {Need.RETAIN_DATA} if name == "unsir" else chosen.needs  # of its forget set only the classes
        alone = any(len(data[0][0]) % size == 1 for need, data in sets.items() if need in read)
        assert said == (alone and fixed.get(name, mode) == "train"), size
