"""Metrics: values, refusals, and models that no metric may change."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from unlearnkit import ConfigurationError, CrossEntropy, EvaluationInputs, Metric, MetricTraits, MismatchError
from unlearnkit.models.parameters import digest


class Author(Metric):
    """A metric that runs the test's function."""

    name = "author"

    def __init__(self, act=lambda _: {"value": 0.25}):
        self.act = act

    def measure(self, inputs):
        return self.act(inputs)


class Share(Author):
    name = "share"
    traits = MetricTraits(low=0.0, high=1.0, unit="fraction")


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model(torch.randn(4, 2)).sum().backward()
    return model


def inputs():
    return EvaluationInputs(
        model=net(), splits={"forget": [torch.randn(4, 2)]}, original=net(1), retrained=[net(2), net(3)]
    )


def models(inputs):
    return [inputs.model, inputs.original, *inputs.retrained]


def state(inputs):
    return [
        (
            digest(m),
            [id(p) for p in m.parameters()],
            [p.grad.tolist() for p in m.parameters()],
            [x.training for x in m.modules()],
            [p.requires_grad for p in m.parameters()],
        )
        for m in models(inputs)
    ], torch.get_rng_state().tolist()


def test_values_may_be_numbers_or_none():
    assert Author(lambda _: {"a": 1, "b": 0.5, "c": None}).evaluate(inputs()) == {"a": 1.0, "b": 0.5, "c": None}
    assert Author(lambda _: {}).evaluate(inputs()) == {}


def test_inputs_cannot_be_edited_and_have_defaults():
    paper = inputs()
    with pytest.raises(TypeError):
        paper.splits["new"] = []
    assert isinstance(paper.retrained, tuple)
    assert paper.objective == CrossEntropy()


@torch.no_grad()
def edit(model):
    model[0].bias.add_(1)


def edit_buffer(model):
    model.train()
    model(torch.randn(5, 2))


def grow(model):
    model.append(nn.Linear(3, 3))


@pytest.mark.parametrize("which", [0, 1, 3])
@pytest.mark.parametrize(
    ("act", "said"), [(edit, "0.bias: edited"), (edit_buffer, "1.running_mean: edited"), (grow, "")]
)
def test_a_metric_that_changes_any_model_is_refused_and_undone(act, said, which):
    def measure(inputs):
        act(models(inputs)[which])
        return {"value": 1.0}

    paper = inputs()
    before = state(paper)
    with pytest.raises(MismatchError, match=rf"(?s)metric 'author' \(.*Author\) changed a model.*put back\).*{said}"):
        Author(measure).evaluate(paper)
    assert state(paper) == before


def test_modes_gradients_flags_and_random_state_are_restored_silently():
    def measure(inputs):
        for model in models(inputs):
            model.eval().requires_grad_(requires_grad=False)
            model.zero_grad()
        torch.rand(5)
        return {"value": 1.0}

    paper = inputs()
    before = state(paper)
    assert Author(measure).evaluate(paper) == {"value": 1.0}
    assert state(paper) == before


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()])
def test_a_metric_that_fails_is_an_error_and_undone(error):
    def measure(inputs):
        edit(inputs.model)
        torch.rand(5)
        raise error

    paper = inputs()
    before = state(paper)
    with pytest.raises(type(error)):
        Author(measure).evaluate(paper)
    assert state(paper) == before


def test_the_author_sees_models_in_eval_mode():
    seen = Author(lambda inputs: {"training": float(any(m.training for x in models(inputs) for m in x.modules()))})
    assert seen.evaluate(inputs()) == {"training": 0.0}


def test_an_error_of_a_metric_names_it():
    def measure(inputs):
        return {"value": len(inputs.splits["forget-test"])}

    with pytest.raises(KeyError) as caught:
        Author(measure).evaluate(inputs())
    assert caught.value.__notes__ == [f"raised by metric 'author' ({__name__}.Author)"]


@pytest.mark.parametrize(
    ("traits", "said"),
    [
        ({"better": "lower is"}, "MetricTraits.better: expected one of 'higher', 'lower', 'near retrained', saw"),
        ({"low": 1.0, "high": 0.0}, "expected low < high, saw 1.0 and 0.0"),
        ({"holds": "abc"}, "expected several names, saw 'abc'"),
    ],
)
def test_traits_that_cannot_be(traits, said):
    with pytest.raises(ConfigurationError, match=said):
        MetricTraits(**traits)


def test_model_used_twice_is_restored_once():
    model = net()
    paper = EvaluationInputs(model=model, splits={}, original=model, retrained=(model,))
    grads = [p.grad for p in model.parameters()]
    Author().evaluate(paper)
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))


@pytest.mark.parametrize("value", [0.5, [("a", 1.0)], None, {"a": "0.5"}, {"a": torch.tensor(0.5)}, {"a": [1.0]}])
def test_what_is_not_a_mapping_of_numbers_is_refused(value):
    with pytest.raises(MismatchError, match=r"'author' .*: expected a (mapping of names to numbers|number \(float)"):
        Author(lambda _: value).evaluate(inputs())


@pytest.mark.parametrize("value", [math.nan, -1.0, 1.5, math.inf])
def test_number_out_of_range_is_refused(value):
    with pytest.raises(MismatchError, match=r"metric 'share' .*: expected None or a number from 0 to 1: a: saw"):
        Share(lambda _: {"a": value, "b": 0.5, "c": None}).evaluate(inputs())


def test_bounds_are_inclusive_and_nan_is_never_a_number():
    assert Share(lambda _: {"a": 0.0, "b": 1}).evaluate(inputs()) == {"a": 0.0, "b": 1.0}
    assert Share(lambda _: {"a": np.float32(0.5)}).evaluate(inputs()) == {"a": 0.5}
    assert Author(lambda _: {"a": math.inf}).evaluate(inputs()) == {"a": math.inf}
    with pytest.raises(MismatchError, match=r"saw nan"):
        Author(lambda _: {"a": math.nan}).evaluate(inputs())
