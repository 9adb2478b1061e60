"""For each law of every method: three deliberately wrong methods that it rejects; no other law rejects the first one.

The framework prevents most of these faults, so most of the wrong methods override what is final.
"""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

import random
from collections.abc import Callable

import attrs
import numpy as np
import pytest
import torch
from torch import nn
from unlearnkit_methods.jit import JustInTime

from unlearnkit import BudgetError, Need, TrainingUnlearner, Unlearner, UnlearnerTraits
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


@attrs.frozen
class Damages(Wrong):
    """Edit correctly, then do the test's damage to the model."""

    _damage: Callable

    def damage(self, model):
        self._damage(model)


@attrs.frozen
class Uses(Right):
    """Edit correctly, then do something with the inputs."""

    needs = frozenset(Need)
    _act: Callable

    def apply(self, model, inputs):
        super().apply(model, inputs)
        self._act(model, inputs)


@attrs.frozen
class Reports(Right):
    """Edit correctly, and change the report."""

    needs = frozenset()
    traits = UnlearnerTraits(edits_buffers=True)
    _change: Callable

    def apply(self, model, inputs):
        super().apply(model, inputs)
        for buffer in model.buffers():
            buffer.add_(1)

    def unlearn(self, model, inputs):
        return self._change(super().unlearn(model, inputs))


@attrs.frozen
class SpoilsWhenItFails(Right):
    """Restore the model after an error, then do the test's damage."""

    _damage: Callable

    def unlearn(self, model, inputs):
        try:
            return super().unlearn(model, inputs)
        except Exception:
            self._damage(model)
            raise


class DrawsNoUndeclaredData(Right):
    def apply(self, model, inputs):
        super().apply(model, inputs)
        len(inputs.retain_data)


@attrs.frozen(kw_only=True)
class TrainsInTrainModeOnly(SwitchesToTrainMode):
    def passes(self, model, inputs):
        def loss(student, batch):
            assert student.training, "not in train mode"
            return inputs.mean_loss(student, batch)

        return EpochConfig.epochs(inputs.retain_data, loss, count=1)


@attrs.frozen(kw_only=True)
class CountsItsSteps(SwitchesToTrainMode):
    def passes(self, model, inputs):
        def loss(student, batch):
            for buffer in student.buffers():
                buffer.add_(1)
            return inputs.mean_loss(student, batch)

        return EpochConfig.epochs(inputs.retain_data, loss, count=1)


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]


def turn_into_float32(model, _):
    for p in model.parameters():
        p.data = p.data.float()


def shift(model, by):
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(by())


FURTHER = {
    "runs": [DrawsNoUndeclaredData(), Uses(turn_into_float32)],
    "buffers": [
        Damages(lambda m: [norm.num_batches_tracked.add_(1) for norm in norms(m)]),
        Reports(lambda report: attrs.evolve(report, buffers_changed=())),
    ],
    "grads": [
        Damages(lambda m: [p.grad.zero_() for p in trainable(m).values()]),
        Damages(lambda m: [setattr(p, "grad", torch.ones_like(p)) for p in m.parameters() if not p.requires_grad]),
    ],
    "modes": [Damages(lambda m: m.train()), Damages(lambda m: [norm.eval() for norm in norms(m)])],
    "random-state": [Damages(lambda _: torch.manual_seed(0)), Damages(lambda _: random.random())],
    "structure": [
        Damages(lambda m: m.register_buffer("mask", torch.ones(1))),
        Damages(lambda m: [setattr(norm, "running_mean", norm.running_mean.clone()) for norm in norms(m)]),
    ],
    "frozen": [Damages(lambda m: m.requires_grad_(True)), Damages(lambda m: m.head.requires_grad_(False))],
    "inputs": [
        Uses(lambda _, inputs: [x.sub_(x.mean()) for x, _ in inputs.forget_data]),
        Uses(lambda _, inputs: inputs.retain_data.clear()),
    ],
    "report": [
        Reports(lambda r: attrs.evolve(r, tensors=tuple(attrs.evolve(t, changed=t.size - 1) for t in r.tensors))),
        Reports(lambda report: attrs.evolve(report, tensors=report.tensors[1:])),
    ],
    "rolls-back": [SpoilsWhenItFails(lambda m: m.train()), SpoilsWhenItFails(lambda _: np.random.rand())],
    "deterministic": [
        Uses(lambda model, _: shift(model, random.random)),
        Uses(lambda model, _: shift(model, lambda: float(np.random.rand()))),
    ],
    "eval-mode": [TrainsInTrainModeOnly(), CountsItsSteps()],
}


def test_every_law_has_its_three_wrong_methods():
    laws = [*LAWS[Unlearner], *LAWS[TrainingUnlearner]]
    assert list(WRONG) == [law.name for law in laws]
    assert {name: len(FURTHER[name]) for name in WRONG} == dict.fromkeys(FURTHER, 2)
    assert all(law.rejects for law in laws)


def test_a_method_that_trains_with_a_fixed_mode_does_not_owe_the_law_of_eval_mode():
    assert "eval-mode" not in {law.name for law in laws_for(JustInTime())}


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in WRONG for number in range(3)])
def test_the_law_rejects_its_wrong_methods(name, number, record_property):
    record_property("tried", ("wrong methods, estimators and metrics that a law must find", 1))
    wrong = [WRONG[name], *FURTHER[name]][number]
    law = next(law for law in laws_for(wrong) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(wrong).__name__}"):
        law.check(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method(name):
    for law in laws_for(WRONG[name]):
        if law.name != name:
            law.check(WRONG[name], examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method_with_many_examples(name):
    assert set(broken_laws(WRONG[name], examples=100)) == {name}


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
