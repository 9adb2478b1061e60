"""No cheat is called near to retraining, and a retrained model is."""

import copy

import attrs
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from unlearnkit import EvaluationInputs
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.evaluation.metrics import HeadSwap
from unlearnkit.models import Training, train
from unlearnkit.reporting import verdict
from unlearnkit.testing import LawError
from unlearnkit.testing.cheats import CHEATS, CheatCase, check_no_cheat_is_near
from unlearnkit.unlearning.report import Report, TensorChange

CLASSES = 6
LAST = CLASSES - 1
EDITED = Report(method="cheat", tensors=(TensorChange(name="w", size=4, changed=1),))


def clusters(samples, seed):
    """The last class differs from the first in one dimension, which no other class needs."""
    random = torch.Generator().manual_seed(seed)
    means = 3.0 * torch.eye(CLASSES, 12)
    means[LAST] = means[0] + 2.5 * torch.eye(12)[11]
    labels = torch.arange(samples) % CLASSES
    return means[labels] + 0.7 * torch.randn(samples, 12, generator=random), labels


def trained(splits, names, seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(6, CLASSES))
    x, y = (torch.cat([batch[i] for name in names for batch in splits[name]]) for i in (0, 1))
    options = Training(epochs=15, learning_rate=5e-3, seed=seed, weight_decay=1e-2)
    train(model, TensorDataset(x, y), training=options)
    return model.eval()


@pytest.fixture(scope="module")
def splits():
    found = {}
    for name, seed in (("train", 5), ("test", 4)):
        x, y = clusters(600, seed)
        for which, rows in (("forget", y == LAST), ("retain", y != LAST)):
            found[f"{which}-{name}"] = list(zip(x[rows].split(256), y[rows].split(256), strict=True))
    return found


@pytest.fixture(scope="module")
def models(splits):
    original = trained(splits, ("retain-train", "forget-train"), 100)
    return original, [trained(splits, ("retain-train",), seed) for seed in range(4)]


@pytest.fixture(scope="module")
def case(splits, models):
    return CheatCase(model=models[0], forget=splits["forget-train"], retain=splits["retain-train"], label=LAST)


@pytest.fixture(scope="module")
def judged(splits, models):
    original, retrained = models

    def of(model, metrics):
        inputs = EvaluationInputs(model=model, splits=splits, original=original, retrained=retrained[:3])
        return verdict(inputs, EDITED, metrics=metrics, whole_class=True)

    return of


def test_no_cheat_is_called_near(models, case, judged):
    metrics = {"head-swap": HeadSwap()}
    assert judged(models[1][3], metrics).kind == "near"  # one more retrained model
    said = check_no_cheat_is_near(case, lambda model: judged(model, metrics).kind)
    assert said.keys() == CHEATS.keys()
    assert judged(CHEATS["muted-bias"](case), metrics).holds == "still there"


def test_frozen_layers_hide_nothing(splits, case):
    cheat = CHEATS["batch-norm-shift"](case)
    frozen = copy.deepcopy(cheat).requires_grad_(False)
    values = [HeadSwap().evaluate(EvaluationInputs(model=m, splits=splits))["forget-test"] for m in (cheat, frozen)]
    assert values[0] == values[1]


def test_the_lookup_knows_large_norms_too(case):
    large = [(100 * x, y) for x, y in case.forget]
    cheat = CHEATS["norm-lookup"](attrs.evolve(case, forget=large))
    assert all(bool((cheat(x)[:, LAST] == -1e4).all()) for x, _ in large)


def test_a_verdict_of_accuracy_alone_is_found_out(splits, case):
    """The law must be able to fail."""

    def by_accuracy(model):
        return "near" if loss_and_accuracy(model, splits["forget-test"]).accuracy < 0.02 else "apart"

    with pytest.raises(LawError, match="expected another verdict, saw 'near' for muted-bias"):
        check_no_cheat_is_near(case, by_accuracy)


def test_cheats_leave_the_model_alone(models, case):
    before = copy.deepcopy(models[0].state_dict())
    for cheat in CHEATS.values():
        cheat(case)
    assert all(torch.equal(value, before[name]) for name, value in models[0].state_dict().items())
