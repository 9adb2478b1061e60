"""For each law of metrics: three deliberately wrong ones that it rejects; no other law rejects the first one."""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

import random
from collections.abc import Callable

import attrs
import numpy as np
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


class TakesTheFirstRetrainedModel(Right):
    def measure(self, inputs):
        inputs.retrained[0].eval()
        return super().measure(inputs)


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
    "missing-inputs": TakesTheFirstRetrainedModel(),
    "untouched": Trains(),
    "data": SortsLabels(),
    "range": SaysPercent(),
    "deterministic": LooksAtRandom(),
}


@attrs.frozen
class Changes(Right):
    """Measure correctly, then do something to the inputs, or change the values."""

    after: Callable = lambda _: None
    values: Callable = lambda found: found

    def evaluate(self, inputs):
        found = super().evaluate(inputs)
        self.after(inputs)
        return self.values(found)


class NeedsTheOriginal(Right):
    def measure(self, inputs):
        inputs.original.eval()
        return super().measure(inputs)


class NeedsUnseenSamples(Right):
    def measure(self, inputs):
        return {"batches": min(1.0, float(len(inputs.splits["forget-test"])))}


class NeedsAnotherSplit(Right):
    def measure(self, inputs):
        return {"samples": float(len(inputs.splits["validation"]) > 0)}


FURTHER = {
    "runs": [NeedsAnotherSplit(), Changes(values=lambda _: {})],
    "missing-inputs": [NeedsTheOriginal(), NeedsUnseenSamples()],
    "untouched": [
        Changes(after=lambda inputs: inputs.original.train(not inputs.original.training)),
        Changes(after=lambda inputs: inputs.retrained[0].zero_grad()),
    ],
    "data": [
        Changes(after=lambda inputs: [x.mul_(0.5) for x, _ in inputs.splits["retain-test"]]),
        Changes(after=lambda inputs: inputs.splits["forget-train"].clear()),
    ],
    "range": [
        Changes(values=lambda found: {"accuracy": found["accuracy"] - 2}),
        Changes(values=lambda _: {"accuracy": float("nan")}),
    ],
    "deterministic": [
        Changes(values=lambda _: {"chance": random.random()}),
        Changes(values=lambda _: {"chance": float(np.random.rand())}),
    ],
}


def test_every_law_has_its_three_wrong_metrics():
    assert list(WRONG) == [law.name for law in LAWS[Metric]]
    assert {name: len(FURTHER[name]) for name in WRONG} == dict.fromkeys(FURTHER, 2)
    assert all(law.rejects for law in LAWS[Metric])


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in WRONG for number in range(3)])
def test_the_law_rejects_its_wrong_metrics(name, number, record_property):
    record_property("tried", ("wrong methods, estimators and metrics that a law must find", 1))
    wrong = [WRONG[name], *FURTHER[name]][number]
    law = next(law for law in laws_for(wrong) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(wrong).__name__}"):
        law.check(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_metric(name):
    for law in laws_for(WRONG[name]):
        if law.name != name:
            law.check(WRONG[name], examples=6)


def test_the_right_metric_passes():
    assert broken_laws(Right()) == {}
