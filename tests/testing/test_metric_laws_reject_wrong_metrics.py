"""For each law of metrics: a deliberately wrong metric that this law rejects, and no other one."""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

import pytest
import torch

from unlearnkit import Metric, MetricTraits
from unlearnkit.testing import LawError, broken_laws, laws_for
from unlearnkit.testing.law import LAWS


class Right(Metric):
    """Accuracy on the forget set."""

    name = "wrong"
    traits = MetricTraits(low=0.0, high=1.0, unit="fraction")

    def measure(self, inputs):
        was = inputs.model.training
        inputs.model.eval()
        with torch.no_grad():
            hits = [inputs.model(x).argmax(1) == y for x, y in inputs.splits["forget-train"]]
        inputs.model.train(was)
        return {"accuracy": float(torch.cat(hits).double().mean())}


class NeedsMoreData(Right):
    def measure(self, inputs):
        extra = sum(len(y) for _, y in inputs.splits["forget-train"]) - 3
        return {"inverse": min(1.0, abs(1 / extra))}


class Trains(Right):
    def evaluate(self, inputs):
        values = super().evaluate(inputs)
        with torch.no_grad():
            inputs.model.head.bias.add_(1)
        return values


class SortsLabels(Right):
    def measure(self, inputs):
        values = super().measure(inputs)
        for _, y in inputs.splits["forget-train"]:
            y.add_(1)
        return values


class SaysPercent(Right):
    def evaluate(self, inputs):
        return {"accuracy": 100 * super().evaluate(inputs)["accuracy"]}


class LooksAtRandom(Right):
    def measure(self, inputs):
        return {"chance": float(torch.rand(()))}


WRONG = {
    "runs": NeedsMoreData(),
    "untouched": Trains(),
    "data": SortsLabels(),
    "range": SaysPercent(),
    "deterministic": LooksAtRandom(),
}


def test_every_law_has_its_wrong_metric():
    assert list(WRONG) == [law.name for law in LAWS[Metric]]
    assert all(law.rejects for law in LAWS[Metric])


@pytest.mark.parametrize("name", WRONG)
def test_the_law_rejects_its_wrong_metric(name):
    law = next(law for law in laws_for(WRONG[name]) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(WRONG[name]).__name__}"):
        law.check(WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_metric(name):
    for law in laws_for(WRONG[name]):
        if law.name != name:
            law.check(WRONG[name], examples=6)


def test_the_right_metric_passes():
    assert broken_laws(Right()) == {}
