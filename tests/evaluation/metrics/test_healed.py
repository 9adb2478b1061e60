"""`healed`: the share of corrupted samples that get their true label."""

import pytest
import torch
from torch import nn

from unlearnkit import CrossEntropy, EvaluationInputs
from unlearnkit.evaluation.metrics import Healed
from unlearnkit.testing import parametrize_with_checks


@parametrize_with_checks([Healed()])
def test_contract(subject, law):
    law.check(subject, examples=6)


def batch(*rows):
    """The model is the identity, so that a row of logits is an input."""
    x, true, state, label = zip(*rows, strict=True)
    return (torch.eye(3)[list(x)], torch.tensor(true), torch.tensor(state), torch.tensor(label))


FORGET = [batch((0, 0, 2, 1), (1, 0, 2, 1)), batch((2, 2, 2, 0), (1, 1, 2, 0))]
RETAIN = [batch((0, 0, 0, 0), (1, 1, 1, 2), (0, 1, 1, 2), (2, 2, 0, 2))]


def test_worked_example():
    """Of four known samples three have their true label; of two unknown ones, one."""
    inputs = EvaluationInputs(
        model=nn.Identity(), splits={"forget-train": FORGET, "retain-train": RETAIN}, original=nn.Identity()
    )
    found = Healed().evaluate(inputs)
    assert {key: found[key] for key in ("known", "unknown")} == {"known": 0.75, "unknown": 0.5}
    assert {key for key, value in found.items() if value is None} == {"retrained known", "retrained unknown"}


@pytest.mark.parametrize(
    ("splits", "reason"),
    [
        ({"forget-train": [(torch.eye(3), torch.arange(3))]}, "no labels of corruption"),
        ({"forget-train": RETAIN}, "no such corrupted sample"),
        ({}, "no split 'forget-train'"),
    ],
)
def test_what_does_not_apply(splits, reason):
    found = Healed().examine(EvaluationInputs(model=nn.Identity(), splits=splits, objective=CrossEntropy()))
    assert found["known"].value is None
    assert reason in found["known"].reason
