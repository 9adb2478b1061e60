"""For each elementwise law: three deliberately wrong methods that it rejects; no other law rejects the first one."""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

from collections.abc import Callable
from typing import ClassVar

import attrs
import pytest
import torch

from unlearnkit import ElementwiseUnlearner, UnlearnerTraits, option
from unlearnkit.models import trainable
from unlearnkit.models.parameters import parameters
from unlearnkit.testing import LawError, broken_laws, laws_for
from unlearnkit.testing.law import LAWS

EVERYTHING = {
    "local": True,
    "non_amplifying": True,
    "sign_preserving": True,
    "odd": True,
    "scale_free": True,
    "idempotent": True,
}


def selected(forget, reference, alpha=2.0):
    return forget > alpha * reference


class Wrong(ElementwiseUnlearner):
    """Zero where F_f > 2·F_r: correct, with every trait that holds."""

    name = "wrong"
    traits = UnlearnerTraits(**EVERYTHING)

    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference), torch.zeros_like(theta), theta)


class MakesScalarsVectors(Wrong):
    def rule(self, theta, forget, reference):
        return torch.atleast_1d(super().rule(theta, forget, reference))


class WritesThroughNumpy(Wrong):
    def rule(self, theta, forget, reference):
        edited = super().rule(theta, forget, reference)
        forget.numpy()[...] += 1  # detectable only by comparing bits
        return edited


class SquaresImportances(Wrong):
    traits = UnlearnerTraits(local=True)

    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference), forget**2 / forget**2 - 1, theta)


class SparesAColumn(Wrong):
    def rule(self, theta, forget, reference):
        edited = super().rule(theta, forget, reference)
        if theta.dim() > 1:
            edited[..., 0] = theta[..., 0]
        return edited


class TakesTheLargest(Wrong):
    traits = UnlearnerTraits(**(EVERYTHING | {"idempotent": True}))

    def rule(self, theta, forget, reference):
        return torch.where((forget == forget.max()) & (forget > 0), torch.zeros_like(theta), theta)


class TakesTheDead(Wrong):
    def rule(self, theta, forget, reference):
        return torch.where(forget >= 2 * reference, torch.zeros_like(theta), theta)


class ForgetsTheClamp(Wrong):
    # α = 1/4, λ = 2, so that λ·F_r/F_f may exceed 1
    traits = UnlearnerTraits(**(EVERYTHING | {"idempotent": False}))

    def rule(self, theta, forget, reference):
        # an overflow would break the law of finite weights, too
        grown = theta * 2 * (reference / forget).clamp(max=1.0)
        return torch.where(selected(forget, reference, 0.25) & (theta.abs() <= 10_000), grown, theta)


class FlipsTheSign(Wrong):
    traits = UnlearnerTraits(**(EVERYTHING | {"idempotent": False}))

    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference), -theta, theta)


class SparesTheNegative(Wrong):
    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference) & (theta > 0), torch.zeros_like(theta), theta)


@attrs.frozen(kw_only=True)
class SelectsBelow(ElementwiseUnlearner):
    name: ClassVar[str] = "wrong"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(
        **(EVERYTHING | {"scale_free": False, "local": True}), monotone={"tau"}
    )
    tau: float = option(1.0, doc="threshold", at_least=0)

    def rule(self, theta, forget, reference):
        return torch.where((forget > 0) & (forget < self.tau), torch.zeros_like(theta), theta)


class AddsAnEpsilon(Wrong):
    traits = UnlearnerTraits(**(EVERYTHING | {"idempotent": False}))

    def rule(self, theta, forget, reference):
        beta = (reference / (forget + 1e-8)).clamp(max=1.0)
        return torch.where(selected(forget, reference), theta * beta, theta)


class Halves(Wrong):
    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference), theta / 2, theta)


class EditsTiedWeightsTwice(Wrong):
    traits = UnlearnerTraits(**(EVERYTHING | {"idempotent": False}))

    def rule(self, theta, forget, reference):
        return torch.where(selected(forget, reference), theta / 2, theta)

    def apply(self, model, inputs):
        f, r, named = inputs.forget.mean(), inputs.reference.mean(), parameters(model)
        with torch.no_grad():
            for _, p in model.named_parameters(remove_duplicate=False):
                if p.requires_grad:
                    name = next(n for n, q in named.items() if q is p)
                    p.copy_(self.edit(p, f[name], r[name]))


WRONG = {
    "kind": MakesScalarsVectors(),
    "pure": WritesThroughNumpy(),
    "finite": SquaresImportances(),
    "permutation": SparesAColumn(),
    "partition": TakesTheLargest(),
    "locality": TakesTheDead(),
    "no-amplification": ForgetsTheClamp(),
    "sign": FlipsTheSign(),
    "odd": SparesTheNegative(),
    "monotone": SelectsBelow(),
    "scale-free": AddsAnEpsilon(),
    "idempotent": Halves(),
    "edited-once": EditsTiedWeightsTwice(),
}


@attrs.frozen
class Does(ElementwiseUnlearner):
    """A method with a given rule and the traits of one law."""

    name: ClassVar[str] = "wrong"
    _body: Callable
    _promises: UnlearnerTraits

    def promises(self):
        return self._promises

    def rule(self, theta, forget, reference):
        return self._body(theta, forget, reference)


@attrs.frozen(kw_only=True)
class SelectsMoreWithAlpha(ElementwiseUnlearner):
    """Dampening by F_r/F_f, with α on the wrong side of the selection."""

    name: ClassVar[str] = "wrong"
    traits: ClassVar[UnlearnerTraits] = UnlearnerTraits(monotone={"alpha"})
    alpha: float = option(2.0, doc="selection weighting", above=0)

    def selects(self, forget, reference):
        return forget * self.alpha > reference

    def rule(self, theta, forget, reference):
        beta = (reference / forget).clamp(max=1).nan_to_num()
        return torch.where(self.selects(forget, reference), theta * beta, theta)


class SelectsBetweenAlphaAndItsDouble(SelectsMoreWithAlpha):
    def selects(self, forget, reference):
        return (forget > self.alpha * reference) & (forget < 2 * self.alpha * reference)


class SparesBiases(Wrong):
    def apply(self, model, inputs):
        f, r = inputs.forget.mean(), inputs.reference.mean()
        with torch.no_grad():
            for name, p in trainable(model).items():
                if p.dim() > 1:
                    p.copy_(self.edit(p, f[name], r[name]))


class ComparesTotals(Wrong):
    def apply(self, model, inputs):
        f, r = inputs.forget.totals, inputs.reference.totals
        with torch.no_grad():
            for name, p in trainable(model).items():
                p.copy_(self.edit(p, f[name], r[name]))


def rest(theta, forget, reference):
    """Zero where F_f > F_r, to which the wrong methods add their faults."""
    return torch.where(forget > reference, torch.zeros_like(theta), theta)


def writes_where_no_counter_counts(theta, forget, reference):
    edited = rest(theta, forget, reference)
    forget.data.add_(1)
    return edited


def sorts_its_reference(theta, forget, reference):
    edited = rest(theta, forget, reference)
    reference.numpy()[...] = reference.flatten().sort(descending=True).values.view_as(reference).numpy()
    return edited


def adds_its_place(theta, *_):
    return theta + torch.arange(theta.numel()).view_as(theta)


def adds_up_its_neighbours(theta, forget, _):
    return theta / (1 + forget.clamp(max=9).flatten().cumsum(0).view_as(theta))


def small_tensors_only(theta, forget, reference):
    return theta if theta.numel() > 2 else rest(theta, forget, reference)


FURTHER = {
    "kind": [lambda t, f, r: t.double() if (f > r).any() else t, lambda t, f, r: rest(t, f, r).flatten()],
    "pure": [writes_where_no_counter_counts, sorts_its_reference],
    "finite": [lambda t, f, r: t * (r / f), lambda t, f, r: torch.where(f > r, 2 * t, t)],
    "permutation": [adds_its_place, adds_up_its_neighbours],
    "partition": [lambda t, f, r: rest(t, f, r + f.mean()), small_tensors_only],
    "locality": [lambda t, *_: t + 0, lambda t, f, r: rest(t.nan_to_num(), f, r)],
    "no-amplification": [
        lambda t, f, r: torch.where(f > r, t.sign() * t.abs().ceil(), t),
        lambda t, f, r: t * (r / f).clamp(min=0.5, max=1.001).nan_to_num(),
    ],
    "sign": [lambda t, f, _: t - t.sign() * f.clamp(max=9), lambda t, f, r: torch.where(f > 2 * r, t.abs(), t)],
    "odd": [lambda t, f, r: torch.where(f > 9 * r, t + 1e-3, t), lambda t, f, r: torch.where(f > r, t.clamp(min=0), t)],
    "monotone": [SelectsMoreWithAlpha(), SelectsBetweenAlphaAndItsDouble()],
    "scale-free": [lambda t, f, r: rest(t, f.clamp(min=1e-12), r), lambda t, f, r: rest(t, f.log1p(), r)],
    "idempotent": [lambda t, f, r: torch.where(f > r, -t, t), lambda t, f, r: t * (r / f).clamp(max=1).nan_to_num()],
    "edited-once": [SparesBiases(), ComparesTotals()],
}
PROMISED = {
    "locality": "local",
    "no-amplification": "non_amplifying",
    "sign": "sign_preserving",
    "odd": "odd",
    "scale-free": "scale_free",
    "idempotent": "idempotent",
}


def further(name):
    traits = UnlearnerTraits(**({PROMISED[name]: True} if name in PROMISED else {}))
    return [one if isinstance(one, ElementwiseUnlearner) else Does(one, traits) for one in FURTHER[name]]


def test_every_elementwise_law_has_its_three_wrong_methods():
    laws = LAWS[ElementwiseUnlearner]
    assert list(WRONG) == [law.name for law in laws]
    assert {name: len(FURTHER[name]) for name in WRONG} == dict.fromkeys(FURTHER, 2)
    assert all(law.rejects for law in laws)


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in WRONG for number in range(3)])
def test_the_law_rejects_its_wrong_methods(name, number, record_property):
    record_property("tried", ("wrong methods, estimators and metrics that a law must find", 1))
    wrong = [WRONG[name], *further(name)][number]
    law = next(law for law in laws_for(wrong) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(wrong).__name__}"):
        law.check(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_no_other_elementwise_law_rejects_the_wrong_method(name):
    for law in LAWS[ElementwiseUnlearner]:
        if law.name != name and law.applies(WRONG[name]):
            law.check(WRONG[name], examples=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method_with_many_examples(name):
    assert set(broken_laws(WRONG[name])) == {name}


def test_the_right_method_that_they_derive_from_passes():
    assert broken_laws(Wrong(), examples=8) == {}
