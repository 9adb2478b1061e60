"""For each elementwise law: a deliberately wrong method that this law rejects, and no other one."""

# ruff: noqa: ARG002 - the methods here have the signatures of the contract, and need less

from typing import ClassVar

import attrs
import pytest
import torch

from unlearnkit import ElementwiseUnlearner, UnlearnerTraits, option
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


def test_every_elementwise_law_has_its_wrong_method():
    laws = LAWS[ElementwiseUnlearner]
    assert list(WRONG) == [law.name for law in laws]
    assert all(law.rejects for law in laws)


@pytest.mark.parametrize("name", WRONG)
def test_the_law_rejects_its_wrong_method(name):
    law = next(law for law in laws_for(WRONG[name]) if law.name == name)
    with pytest.raises(LawError, match=f"the law '{name}' is broken by {type(WRONG[name]).__name__}"):
        law.check(WRONG[name])


@pytest.mark.parametrize("name", WRONG)
def test_no_other_elementwise_law_rejects_the_wrong_method(name):
    for law in LAWS[ElementwiseUnlearner]:
        if law.name != name and law.applies(WRONG[name]):
            law.check(WRONG[name], examples=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_no_other_law_rejects_the_wrong_method_with_many_examples(name):
    assert set(broken_laws(WRONG[name], examples=1000)) == {name}


def test_the_right_method_that_they_derive_from_passes():
    assert broken_laws(Wrong(), examples=8) == {}
