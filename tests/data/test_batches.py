"""Batches: nested structures whose tensors share dimension 0."""

import dataclasses
import re
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.batches import batch_size, digest, has_values, joined, map_tensors, pick, take, tensors, to_device
from unlearnkit.utils.errors import ConfigurationError, MismatchError

Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Data:
    x: torch.Tensor
    note: str = "kept"
    size: int = dataclasses.field(init=False, default=7)


@attrs.frozen
class Attrs:
    x: torch.Tensor
    _hidden: torch.Tensor


X = torch.arange(6.0).reshape(3, 2)
KINDS: dict[str, Any] = {
    "tensor": X,
    "tuple": (X, "label"),
    "list": [X, None],
    "namedtuple": Pair(X, X + 1),
    "dict": {"x": X, "y": [X]},
    "ordered": OrderedDict(x=X),
    "defaultdict": defaultdict(list, x=X),
    "userdict": UserDict(x=X),
    "proxy": MappingProxyType({"x": X}),
    "dataclass": Data(X),
    "attrs": Attrs(X, X),
    "nested": ({"a": (X, [X])}, Data(X)),
}


def test_the_notebooks_batch():
    batch = (torch.zeros(4, 3, 2, 2), torch.tensor([1, 2, 3, 4]), torch.tensor([0, 0, 1, 1]))
    assert batch_size(batch) == 4
    part = take(batch, slice(1, 3))
    assert part[0].shape == (2, 3, 2, 2)
    assert part[1].tolist() == [2, 3]
    assert pick(batch, -1, what="targets") is batch[2]


@pytest.mark.parametrize("batch", KINDS.values(), ids=KINDS.keys())
def test_every_kind_keeps_its_type_and_loses_no_tensor(batch):
    doubled = map_tensors(batch, lambda t: t * 2)
    assert type(doubled) is type(batch)
    before, after = list(tensors(batch)), list(tensors(doubled))
    assert len(before) == len(after) > 0
    assert all(torch.equal(2 * b, a) for b, a in zip(before, after, strict=True))
    assert batch_size(batch) == 3
    assert digest(batch) != digest(doubled)
    assert all(torch.equal(m, b) for m, b in zip(tensors(to_device(batch, torch.device("cpu"))), before, strict=True))


def test_a_defaultdict_keeps_its_factory_and_the_original_its_tensors():
    batch = defaultdict(list, x=X)
    mapped = map_tensors(batch, torch.zeros_like)
    assert mapped["new"] == []
    assert batch["x"] is X


def test_other_values_pass_through_unchanged():
    assert map_tensors(("label", 3, None, {1, 2}), lambda t: t + 1) == ("label", 3, None, {1, 2})
    assert map_tensors(Data(X), lambda t: t + 1).note == "kept"


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 6))
def test_take_slices_every_tensor_as_a_view(size, start, stop):
    x, y = torch.arange(size), torch.arange(2 * size).reshape(size, 2)
    part = take({"x": x, "y": [y]}, slice(start, stop))
    assert part["x"].tolist() == list(range(size))[start:stop]
    assert part["y"][0].tolist() == y.tolist()[start:stop]
    assert part["x"].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@settings(derandomize=True, deadline=None)
@given(st.permutations(range(5)))
def test_the_digest_depends_on_the_order_of_samples(order):
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    same = digest((x[order], y[order])) == digest((x, y))
    assert same == (order == list(range(5)))


def test_digest_depends_on_shapes_and_accepts_every_dtype():
    assert digest(torch.zeros(2, 3)) != digest(torch.zeros(3, 2))
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64):
        assert digest(torch.zeros(3).to(dtype)) != digest(torch.ones(3).to(dtype))
    assert digest(torch.tensor([1j])) != digest(torch.tensor([2j]))


def test_the_digest_reads_at_most_4096_elements(monkeypatch):
    seen = []
    original = torch.Tensor.contiguous
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: seen.append(t.numel()) or original(t))
    for size in (4096, 4097, 8191, 100_000):
        digest(torch.zeros(size))
    assert max(seen) <= 4096
    assert seen[0] == 4096


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (("a", "b"), r"at least one tensor, saw tuple without any.*data loader"),
        ((torch.zeros(2), torch.zeros(3)), r"same length in dimension 0.*\[\(2,\), \(3,\)\].*collate"),
        ((torch.zeros(2), torch.tensor(1.0)), r"same length in dimension 0.*\(\)"),
        (torch.tensor(1.0), r"same length"),
        ((torch.zeros(0, 3), torch.zeros(0)), r"at least one sample, saw 0: drop empty batches"),
        ({}, r"saw dict without any"),
    ],
)
def test_a_batch_without_a_size_is_refused(batch, said):
    with pytest.raises(MismatchError, match=said):
        batch_size(batch)


@pytest.mark.parametrize(("where", "value"), [(0, "x"), (-1, "y"), (1, "y")])
def test_pick_by_position(where, value):
    assert pick(("x", "y"), where, what="inputs") == value
    assert pick(["x", "y"], where, what="inputs") == value


def test_pick_by_key_and_by_attribute():
    assert pick({"image": 1}, "image", what="inputs") == 1
    assert pick(Pair(1, 2), "y", what="targets") == 2
    assert pick(Data(X), "x", what="inputs") is X


@pytest.mark.parametrize(
    ("batch", "where", "said"),
    [
        (("x", "y"), 2, "the inputs of a batch at 2, saw a tuple of 2 fields"),
        (("x", "y"), -3, "at -3, saw a tuple of 2 fields"),
        ({"image": 1, "label": 2}, "img", r"at 'img', saw a dict with the keys \['image', 'label'\]"),
        ({"image": 1}, 0, r"saw a dict with the keys \['image'\]"),
        (torch.zeros(2), 0, r"saw a tensor: pass a list of batches, \[\(inputs, labels\)\]"),
        (("x", "y"), "index", "at 'index', saw a tuple"),  # a method of tuples, not a field
        (("x", "y"), "image", "say where they are.*CrossEntropy"),
    ],
)
def test_a_field_that_is_not_there_is_refused_with_those_that_are(batch, where, said):
    with pytest.raises(ConfigurationError, match=said):
        pick(batch, where, what="inputs")


PLAIN = {
    "strings": ["a", "b", "c"],
    "a tuple, as collating makes it": ("a", "b", "c"),
    "lists of several lengths": [[1], [2, 3], []],
    "an array": np.array([5.0, 6.0, 7.0]),
}


@pytest.mark.parametrize("values", PLAIN.values(), ids=PLAIN.keys())
def test_plain_values_are_sliced_with_their_samples(values):
    batch = {"x": X, "values": values}
    assert has_values(batch)
    assert list(take(batch, slice(1, 3))["values"]) == list(values[1:])
    assert list(take(batch, torch.tensor([2, 0]))["values"]) == [values[2], values[0]]
    assert type(take(batch, slice(0, 1))["values"]) is type(values)


@pytest.mark.parametrize("values", PLAIN.values(), ids=PLAIN.keys())
def test_plain_values_are_joined_with_their_samples(values):
    first, second = ({"x": X[rows], "values": values[rows], "lr": 0.1} for rows in (slice(0, 1), slice(1, 3)))
    found = joined([first, second])
    assert torch.equal(found["x"], X)
    assert list(found["values"]) == list(values)
    assert type(found["values"]) is type(values)
    assert found["lr"] == 0.1


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ((X,), "Tensor (n, 2), list; and Tensor (n, 2) "),
        ((X[:, :1], ["a", "b", "c"]), "Tensor (n, 2), list; and Tensor (n, 1), list "),
        ((X, X), "Tensor (n, 2), list; and Tensor (n, 2), Tensor (n, 2) "),
        ((X[:1], np.zeros(1)), "Tensor (n, 2), list; and Tensor (n, 2), array (n) "),
    ],
    ids=["values missing", "another shape", "a tensor", "an array"],
)
def test_batches_that_hold_something_else_are_not_joined(other, seen):
    with pytest.raises(MismatchError, match=re.escape(seen)):
        joined([(X, ["a", "b", "c"]), other])


def test_an_image_size_as_long_as_one_of_the_batches_is_not_joined():
    with pytest.raises(MismatchError, match=r"saw Tensor \(n, 2\); and Tensor \(n, 2\), tuple \(a list or tuple"):
        joined([(X, (32, 32)), (X[:2], (32, 32))])


@pytest.mark.parametrize("values", [("a", "b"), "abc", {1, 2, 3}, {"k": 3}, np.float32(1.0), [X, X, X], None])
def test_values_of_another_length_are_not_sliced(values):
    batch = (X, values)
    assert not has_values(batch)
    kept = take(batch, slice(0, 1))[1]
    assert len(kept) == 3 if isinstance(values, list) else kept == values
