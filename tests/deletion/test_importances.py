"""Importances of a request from a store of sketches: sums have a relative error, differences have none."""

import numpy as np
import pytest
import torch

from unlearnkit import Importance
from unlearnkit.data import DataBundle, LabelledImages
from unlearnkit.deletion.requests import Population
from unlearnkit.deletion.work import find
from unlearnkit.importance import Fingerprint, Role
from unlearnkit.importance.store.store import ImportanceStore

KIND = Fingerprint(estimator="sketched-fisher", unit="sample", precision="gradients float32, totals float32", model="m")


def sketched(samples, error):
    totals = {"w": torch.full((2,), float(samples))}
    return Importance(totals=totals, count=samples, samples=samples, fingerprint=KIND, relative_error=error)


@pytest.fixture
def population():
    labels = {"label": torch.tensor([0] * 10 + [1] * 30)}
    data = LabelledImages(images=torch.zeros(40, 1, 2, 2), labels=labels, target="label")
    return Population.of(DataBundle(name="forty", train=data, test=data), kind="", forgotten=[False] * 40)


@pytest.mark.parametrize(
    ("rows", "role", "forget", "reference"),
    [
        (range(10), "full", 0.4, 0.25),
        (range(10), "retain", 0.4, 0.2),
        (range(15), "full", (10 * 0.4 + 5 * 0.1) / 15, 0.25),
        (range(15), "retain", (10 * 0.4 + 5 * 0.1) / 15, None),
    ],
)
def test_relative_errors_of_groups_and_parts(tmp_path, population, rows, role, forget, reference):
    store = ImportanceStore.create(tmp_path / "store")
    store.put("0", sketched(10, 0.4))
    store.put("1", sketched(30, 0.2))
    of_forget, of_reference, _ = find(
        store, population, np.array(rows), measure=lambda part: sketched(len(part), 0.1), role=Role(role)
    )
    assert of_forget.relative_error == pytest.approx(forget)
    assert of_reference.relative_error == (None if reference is None else pytest.approx(reference))
