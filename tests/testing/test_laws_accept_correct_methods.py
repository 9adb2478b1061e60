"""A correct method without extra promises passes, and so do the shipped classes."""

import pytest
import torch

from unlearnkit import BatchedDiagonalFisher, DiagonalFisher, ElementwiseUnlearner, Unlearner
from unlearnkit.models import trainable
from unlearnkit.testing import laws_for, parametrize_with_checks


class Shrinks(ElementwiseUnlearner):
    """Divide by 1 + F_f/(F_r + 1): correct, and no trait is promised."""

    name = "shrinks"

    def rule(self, theta, forget, reference):
        return theta / (1 + forget / (reference + 1))


class Noise(Unlearner):
    """Add noise from the seed it is given."""

    name = "noise"
    needs = frozenset()

    def apply(self, model, inputs):
        generator = torch.Generator().manual_seed(inputs.seed)
        with torch.no_grad():
            for p in trainable(model).values():
                p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))


SUBJECTS = [Shrinks(), Noise()]


@parametrize_with_checks(SUBJECTS)
def test_no_false_alarm(subject, law):
    law.check(subject, examples=12)


@pytest.mark.slow
@parametrize_with_checks(SUBJECTS)
def test_no_false_alarm_with_many_examples(subject, law):
    law.check(subject, examples=100)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@parametrize_with_checks(
    [
        DiagonalFisher(),
        DiagonalFisher(chunk=1),
        BatchedDiagonalFisher(),
        BatchedDiagonalFisher(weights="equal", reduction="sum"),
    ]
)
def test_the_estimators_that_ship_keep_their_laws(subject, law):
    law.check(subject, examples=6)


def test_the_traits_of_the_estimators_decide_which_laws_they_owe():
    free = {"additive", "order-free", "batch-size-free", "count"}
    assert free <= {law.name for law in laws_for(DiagonalFisher())}
    assert not free & {law.name for law in laws_for(BatchedDiagonalFisher())}
