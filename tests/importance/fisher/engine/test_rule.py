"""Third-party rules: ten lines, used by the engine, and detected when wrong."""

import pytest
import torch
from fisher_oracle import SumOfSquares, distance, engine_only, estimate, oracle
from torch import nn

from unlearnkit import ConfigurationError, UnlearnKitWarning
from unlearnkit.importance.fisher import Call, Rule, register_rule, visible
from unlearnkit.importance.fisher.engine import rule


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(rule, "_RULES", dict(rule._RULES))


@visible
def gain(x, w):
    return x * w.tanh()


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, -0.7]))

    def forward(self, x):
        return gain(x, self.w)


class GainRule(Rule):
    functions = (gain,)
    calls = 0

    def bind(self, x, w):
        GainRule.calls += 1
        return Call(weights={"w": w}, saved=(x,), options=1 - w.detach().tanh() ** 2)

    def per_sample(self, role, g, call):  # noqa: ARG002
        return (g * call.saved[0]).flatten(1, -2).sum(1) * call.options


def batches():
    torch.manual_seed(0)
    return [(torch.randn(4, 3, 2), torch.randn(4))]


def test_a_rule_in_ten_lines():
    register_rule(GainRule())
    engine_only(Gain(), batches(), SumOfSquares())
    assert GainRule.calls > 0


def test_function_without_a_rule_is_traced_into():
    engine_only(Gain(), batches(), SumOfSquares())


def test_wrong_rule_is_detected():
    class Wrong(Rule):
        functions = (gain,)

        def bind(self, x, w):
            return Call(weights={"w": w}, saved=(x,))

        def per_sample(self, role, g, call):  # noqa: ARG002
            return (g * call.saved[0]).flatten(1, -2).sum(1) * 2

    register_rule(Wrong())
    with pytest.warns(UnlearnKitWarning, match="relative difference"):
        seen = estimate(Gain(), batches(), SumOfSquares())
    assert distance(seen, oracle(Gain(), batches(), SumOfSquares())) < 1e-5


def test_two_rules_for_one_function_are_an_error():
    class Other(Rule):
        functions = (torch.nn.functional.linear,)

        def bind(self, *args):  # noqa: ARG002
            return None

        def per_sample(self, role, g, call):  # noqa: ARG002
            return g

    with pytest.raises(ConfigurationError, match="one rule for linear"):
        register_rule(Other())
    register_rule(rule.rule_for(torch.nn.functional.linear))


def test_a_custom_autograd_function_without_a_rule_falls_back():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x * w * 2

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g * w * 2, (g * x * 2).sum((0, 1))

    class Uses(Gain):
        def forward(self, x):
            return Double.apply(x, self.w)

    with pytest.warns(UnlearnKitWarning, match="cannot be proven"):
        seen = estimate(Uses(), batches(), SumOfSquares())
    assert distance(seen, oracle(Uses(), batches(), SumOfSquares())) < 1e-5
