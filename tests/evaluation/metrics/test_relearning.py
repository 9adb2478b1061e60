"""Relearning on a copy: between the original and the retrained models."""

import copy

import attrs
import pytest
import torch
from torch import nn

from unlearnkit import EvaluationInputs
from unlearnkit.evaluation import loss_and_accuracy, metrics
from unlearnkit.evaluation.metrics.residual_knowledge import steps_to_relearn
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import ConfigurationError

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
BATCHES = list(zip(X.split(20), Y.split(20), strict=True))


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2))


def trained(model, steps, rate=0.05):
    """Relearning in plain torch: the oracle."""
    model = copy.deepcopy(model).eval()
    adam = torch.optim.Adam(model.parameters(), lr=rate)
    for number in range(steps):
        x, y = BATCHES[number % len(BATCHES)]
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
    return model


def test_it_counts_the_steps_of_plain_adam():
    model = net(0)
    found = steps_to_relearn(model, BATCHES, loss=0.3, learning_rate=0.05)
    losses = [loss_and_accuracy(trained(model, steps), BATCHES).loss for steps in (found - 1, found)]
    assert found > 3
    assert losses[0] > 0.3 >= losses[1]


def test_model_is_unchanged():
    model = net(0).train()
    model[0].weight.grad = torch.ones(6, 4)
    before, rng = digest(model), torch.get_rng_state()
    steps_to_relearn(model, BATCHES, accuracy=1.0, most=5)
    assert digest(model) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    assert model[0].weight.grad.unique().tolist() == [1.0]


def test_relearning_returns_none_at_the_step_limit():
    assert steps_to_relearn(net(0), BATCHES, loss=0.0, most=2) is None
    with pytest.raises(ConfigurationError, match="at least one batch"):
        steps_to_relearn(net(0), [], loss=0.0)


def inputs(model, original, retrained):
    return EvaluationInputs(model=model, original=original, retrained=retrained, splits={"forget-train": BATCHES})


OPTIONS = {"learning_rate": 0.05, "until": "loss", "margin": 0.0}


def test_the_metric_lies_between_its_anchors():
    original, retrained = trained(net(1), 30), [net(2), net(3)]
    metric = metrics.RelearnTime(**OPTIONS)
    knows = metric.evaluate(inputs(copy.deepcopy(original), original, retrained))
    assert (knows["steps"], knows["original steps"], knows["relative"]) == (0, 0, 0)
    again = metric.evaluate(inputs(copy.deepcopy(retrained[0]), original, retrained[:1]))
    assert again["steps"] == again["retrained steps"] > 0
    assert again["relative"] == 1
    half = metric.evaluate(inputs(trained(retrained[0], 10), original, retrained))
    assert 0 < half["relative"] < 1
    assert half["relative"] == half["steps"] / half["retrained steps"]


def test_accuracy_within_a_margin():
    original = trained(net(1), 100)
    found = metrics.RelearnTime(learning_rate=0.05, margin=0.1).evaluate(inputs(net(0), original, []))
    goal = loss_and_accuracy(original, BATCHES).accuracy * 0.9
    steps = int(found["steps"])
    assert loss_and_accuracy(trained(net(0), steps), BATCHES).accuracy >= goal
    assert loss_and_accuracy(trained(net(0), steps - 1), BATCHES).accuracy < goal


def test_a_bound_is_said_where_a_model_does_not_get_there_and_nowhere_else():
    original, quick = trained(net(1), 60), trained(net(1), 50)
    metric = metrics.RelearnTime(**OPTIONS)
    needed = int(metric.evaluate(inputs(quick, original, []))["steps"])
    assert needed > 0
    just = attrs.evolve(metric, most=needed).examine(inputs(quick, original, [quick, net(0)]))
    assert (just["steps"].value, just["steps"].reason) == (needed, "")
    for name in ("retrained steps", "relative"):  # the mean of one that gets there and one that does not
        assert f"a bound: the original's forget loss was not reached in {needed} steps" in just[name].reason


def test_reasons():
    metric = metrics.RelearnTime(**{**OPTIONS, "most": 1})
    original = trained(net(1), 60)
    found = metric.examine(inputs(net(0), original, []))
    assert "was not reached in 1 steps" in found["steps"].reason
    assert found["retrained steps"].reason == "no retrained model at hand"
    assert "no original model at hand" in metric.examine(inputs(net(0), None, []))["steps"].reason
    same = metric.examine(inputs(original, original, [original]))
    assert "nothing to learn again" in same["relative"].reason
    frozen = net(0).requires_grad_(False)
    assert "cannot be trained" in metric.examine(inputs(frozen, original, []))["steps"].reason
