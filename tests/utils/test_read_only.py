"""Values with read-only mappings can be pickled and deep-copied, and stay read-only."""

import copy
import pickle

import pytest
import torch
from torch import nn

from unlearnkit import DiagonalFisher, EvaluationInputs, Importance, MismatchError, UnlearningInputs
from unlearnkit.importance import DataOrder, Fingerprint
from unlearnkit.utils.options import read_only

WAYS = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture
def importance():
    data = [(torch.eye(2), torch.tensor([0, 1])), (torch.ones(1, 2), torch.tensor([1]))]
    return DiagonalFisher().estimate(nn.Linear(2, 2), data, objective=UnlearningInputs().objective, role="forget")


@each_way
def test_an_importance_can_be_pickled_and_copied(importance, way):
    back = way(importance)
    assert list(back.totals) == list(importance.totals)
    assert all(torch.equal(back.totals[name], total) for name, total in importance.totals.items())
    for field in ("count", "samples", "fingerprint", "role", "trail"):
        assert getattr(back, field) == getattr(importance, field)
    assert back.trail.describe() == "1 × 2, 1 × 1"


@each_way
def test_the_copy_shares_no_tensor_and_cannot_be_edited(importance, way):
    back = way(importance)
    assert back.totals["weight"].data_ptr() != importance.totals["weight"].data_ptr()
    with pytest.raises(TypeError):
        back.totals["weight"] = torch.zeros(2, 2)
    with pytest.raises(TypeError):
        back.trail.sizes[3] = 1


@each_way
def test_a_copy_keeps_its_fingerprint(importance, way):
    assert torch.equal((way(importance) + importance).totals["bias"], 2 * importance.totals["bias"])
    other = Importance(totals=dict(importance.totals), count=3, fingerprint=Fingerprint(unit="batch"))
    with pytest.raises(MismatchError, match="unit: 'batch' against 'sample'"):
        way(other).merge(importance)


@each_way
def test_evaluation_inputs_and_data_order_can_be_copied(way):
    inputs = way(
        EvaluationInputs(model=nn.Linear(2, 1), splits={"retain-test": [(torch.zeros(1, 2), torch.zeros(1).long())]})
    )
    assert [x.shape for x, _ in inputs.splits["retain-test"]] == [(1, 2)]
    trail = DataOrder(sizes={4: 2}, order="ab")
    assert way(trail) == trail


def test_a_tensor_that_two_names_share_is_shared_in_the_copy_too():
    shared = torch.ones(2)
    one = Importance(totals={"a": shared, "b": shared}, count=1)
    twin = copy.deepcopy(one)
    assert twin.totals["a"].data_ptr() == twin.totals["b"].data_ptr() != shared.data_ptr()


def test_read_only_copies():
    source = {"a": 1}
    kept = read_only(source)
    source["a"] = 2
    assert kept == {"a": 1}
