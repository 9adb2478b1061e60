"""A class that breaks the contract is named at its first use, in Python as in a plugin."""
# ruff: noqa: ARG002, ARG004 - the signatures are the framework's

from dataclasses import dataclass

import attrs
import pytest
import torch
from torch import nn

from unlearnkit import (
    ConfigurationError,
    DiagonalFisher,
    ElementwiseUnlearner,
    Metric,
    Need,
    Objective,
    Pipeline,
    TrainingUnlearner,
    Unlearner,
    UnlearningInputs,
    option,
)
from unlearnkit.plugins.manager import fault_of
from unlearnkit.testing import check_unlearner


class Rule(ElementwiseUnlearner):
    name = "rule"

    def rule(self, theta, forget, reference):
        return theta


class Plain(Rule):
    def __init__(self, lam):
        self.lam = lam


@dataclass(frozen=True)
class Data(Rule):
    lam: float = 0.5


class Undecorated(TrainingUnlearner):
    name = "undecorated"
    needs = frozenset({Need.RETAIN_DATA})
    gamma: float = option(0.5, doc="not read")

    def passes(self, model, inputs):
        return []


class Nameless(ElementwiseUnlearner):
    def rule(self, theta, forget, reference):
        return theta


class Shouts(Rule):
    name = "Shouts_Loudly"


class Needless(Unlearner):
    name = "needless"

    def apply(self, model, inputs):
        raise AssertionError


class WordsForNeeds(Needless):
    needs = frozenset({"forget"})


class TwoArguments(Rule):
    def rule(self, theta, forget):
        return theta


class ThreeArguments(Needless):
    needs = frozenset()

    def apply(self, model, inputs, seed):
        raise AssertionError


FAULTS = {
    Plain: r"Plain: expected options that are attrs fields, saw lam, which no record would hold: decorate the class",
    Data: r"Data: expected options that are attrs fields, saw lam, .*attrs.frozen",
    Undecorated: r"Undecorated: expected options that are attrs fields, saw gamma, .*attrs.frozen",
    Nameless: r"Nameless.name: expected lower-case letters, .* saw None",
    Shouts: r"Shouts.name: expected lower-case letters, .* saw 'Shouts_Loudly'",
    Needless: r"Needless.needs: expected a frozenset of Need, saw None",
    WordsForNeeds: r"WordsForNeeds.needs: expected a frozenset of Need, saw frozenset\({'forget'}\)",
    TwoArguments: r"rule: expected the parameters \(self, theta, forget, reference\), saw \(self, theta, forget\)",
    ThreeArguments: r"apply: expected the parameters \(self, model, inputs\), saw \(self, model, inputs, seed\)",
}


@pytest.mark.parametrize("cls", FAULTS, ids=lambda cls: cls.__name__)
def test_a_method_class_is_refused_when_it_is_registered_checked_and_used(cls):
    method = cls(0.5) if cls is Plain else cls()
    uses = [
        lambda: method.unlearn(nn.Linear(2, 2), UnlearningInputs()),
        lambda: check_unlearner(method),
        lambda: Pipeline(unlearner=method),
    ]
    for use in uses:
        with pytest.raises(ConfigurationError, match=FAULTS[cls]):
            use()
    with pytest.raises(ConfigurationError, match=FAULTS[cls]):
        raise ConfigurationError(fault_of(cls, Unlearner))


def test_options_of_estimators_and_objectives_must_be_in_the_fingerprint():
    class Scaled(DiagonalFisher.__mro__[1]):
        name = "scaled"

        def __init__(self, factor):
            self.factor = factor

        def estimate_batch(self, model, batch, *, objective):
            raise AssertionError

    class Focal(Objective):
        def __init__(self, gamma):
            self.gamma = gamma

        def losses(self, model, batch):
            raise AssertionError

    batch = (torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ConfigurationError, match=r"Scaled: expected options that are attrs fields, saw factor"):
        Scaled(2.0).estimate(nn.Linear(2, 2), [batch], objective=Focal(1.0))
    with pytest.raises(ConfigurationError, match=r"Focal: expected an attrs class, saw gamma, which no fingerprint"):
        DiagonalFisher().estimate(nn.Linear(2, 2), [batch], objective=Focal(1.0))
    assert attrs.frozen(type("Named", (Objective,), {"losses": None}))().describe().endswith("Named()")


def test_a_metric_of_other_parameters_is_refused():
    class Odd(Metric):
        name = "odd"

        def measure(self):
            return {}

    assert fault_of(Odd, Metric).endswith("expected the parameters (self, inputs), saw (self)")


def test_methods_and_hooks_with_further_defaults_are_no_fault():
    class More(Rule):
        @staticmethod
        def rule(theta, forget, *rest, scale=1.0):
            return theta

        def prepare(self, *importances, **options):
            return self

    assert fault_of(More, Unlearner) == ""


def test_apply_that_returns_a_model_is_refused():
    class Returns(Unlearner):
        name = "returns"
        needs = frozenset()

        def apply(self, model, inputs):
            return nn.Linear(2, 2)

    with pytest.raises(
        ValueError, match=r"'returns': apply\(\) must edit the model in place .* saw it return a Linear"
    ):
        Returns().unlearn(nn.Linear(2, 2), UnlearningInputs())
