"""For each law of every method: a deliberately wrong method that this law rejects, and no other one.

The framework prevents most of these faults, so most of the wrong methods override what is final.
"""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

import attrs
import pytest
import torch
from torch import nn
from unlearnkit_methods.jit import JustInTime

from unlearnkit import BudgetError, Need, TrainingUnlearner, Unlearner
from unlearnkit.models import trainable
from unlearnkit.testing import LawError, broken_laws, laws_for
from unlearnkit.testing.law import LAWS
from unlearnkit.unlearning import EpochConfig


class Right(Unlearner):
    """Halve every weight."""

    name = "wrong"
    needs = frozenset()

    def apply(self, model, inputs):
        with torch.no_grad():
            for p in trainable(model).values():
                p.mul_(0.5)


class Wrong(Right):
    """Edit correctly, then do some damage."""

    def unlearn(self, model, inputs):
        report = super().unlearn(model, inputs)
        self.damage(model)
        return report

    def damage(self, model):
        raise NotImplementedError


class ExpectsMatrices(Right):
    def apply(self, model, inputs):
        with torch.no_grad():
            for p in trainable(model).values():
                p[:, 0] = 0


class ResetsStatistics(Wrong):
    def damage(self, model):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.add_(1)


class ClearsGradients(Wrong):
    def damage(self, model):
        model.zero_grad(set_to_none=True)


class StaysInEvalMode(Wrong):
    def damage(self, model):
        model.eval()


class DrawsANumber(Wrong):
    def damage(self, model):
        torch.rand(1)


class ReplacesABias(Wrong):
    def damage(self, model):
        grad = model.head.bias.grad
        model.head.bias = nn.Parameter(model.head.bias.detach().clone())
        model.head.bias.grad = grad


class EditsFrozen(Wrong):
    def damage(self, model):
        with torch.no_grad():
            for p in model.parameters():
                if not p.requires_grad:
                    p.add_(1)


class EatsEvidence(Right):
    needs = frozenset({Need.FORGET_IMPORTANCE})

    def apply(self, model, inputs):
        super().apply(model, inputs)
        for total in inputs.forget.totals.values():
            total.zero_()


class MiscountsChanges(Right):
    def unlearn(self, model, inputs):
        report = super().unlearn(model, inputs)
        first = attrs.evolve(report.tensors[0], changed=report.tensors[0].changed + 1)
        return attrs.evolve(report, tensors=(first, *report.tensors[1:]))


class LeavesWreckage(Right):
    def unlearn(self, model, inputs):
        report = super().unlearn(model, attrs.evolve(inputs, max_fraction=None))
        if inputs.max_fraction is not None and report.fraction > inputs.max_fraction:
            raise BudgetError("too much")
        return report


class DrawsItsNoise(Right):
    def apply(self, model, inputs):
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(torch.rand(p.shape))


@attrs.frozen(kw_only=True)
class SwitchesToTrainMode(TrainingUnlearner):
    name = "wrong"
    needs = frozenset({Need.RETAIN_DATA})

    def passes(self, model, inputs):
        def loss(student, batch):
            return inputs.mean_loss(student.train(), batch)

        return EpochConfig.epochs(inputs.retain_data, loss, count=1)


WRONG = {
    "runs": ExpectsMatrices(),
    "buffers": ResetsStatistics(),
    "grads": ClearsGradients(),
    "modes": StaysInEvalMode(),
    "random-state": DrawsANumber(),
    "structure": ReplacesABias(),
    "frozen": EditsFrozen(),
    "inputs": EatsEvidence(),
    "report": MiscountsChanges(),
    "rolls-back": LeavesWreckage(),
    "deterministic": DrawsItsNoise(),
    "eval-mode": SwitchesToTrainMode(),
}


def test_every_law_has_its_wrong_method():
    laws = [*LAWS[Unlearner], *LAWS[TrainingUnlearner]]
    assert list(WRONG) == [law.name for law in laws]
    assert all(law.rejects for law in laws)


def test_a_method_that_trains_with_a_fixed_mode_does_not_owe_the_law_of_eval_mode():
    assert "eval-mode" not in {law.name for law in laws_for(JustInTime())}


@pytest.mark.parametrize("name", WRONG)
def test_the_law_rejects_its_wrong_method(name):
    law = next(law for law in laws_for(WRONG[name]) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(WRONG[name]).__name__}"):
        law.check(WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method(name):
    for law in laws_for(WRONG[name]):
        if law.name != name:
            law.check(WRONG[name], examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method_with_many_examples(name):
    assert set(broken_laws(WRONG[name], examples=300)) == {name}


def test_the_right_method_passes():
    assert broken_laws(Right(), examples=8) == {}


def test_errors_of_the_framework_break_the_law_runs():
    class EditsBuffers(Right):
        def apply(self, model, inputs):
            for buffer in model.buffers():
                buffer.add_(1)

    broken = broken_laws(EditsBuffers(), examples=10)
    assert set(broken) == {"runs"}
    assert "a buffer was edited" in str(broken["runs"])
