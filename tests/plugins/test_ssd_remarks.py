"""`ssd` says when α ≥ 1/p: then it can select nothing, because every forgotten sample is in the full set too."""

import warnings

import attrs
import pytest
import torch
from unlearnkit_ssd import SelectiveSynapticDampening as SSD

from unlearnkit import (
    BatchedDiagonalFisher,
    CrossEntropy,
    DiagonalFisher,
    Evidence,
    Fingerprint,
    Importance,
    Role,
    UnlearnKitWarning,
)
from unlearnkit.testing import Scene


def importance(count, role, unit="sample"):
    return Importance(
        totals={"w": torch.ones(2)}, count=count, samples=count, role=role, fingerprint=Fingerprint(unit=unit)
    )


def remarks(alpha, *, forget=5, reference=100, role=Role.FULL, unit="sample"):
    evidence = Evidence(forget=importance(forget, Role.FORGET, unit), reference=importance(reference, role, unit))
    return SSD(alpha=alpha).remarks(evidence)


@pytest.mark.parametrize("alpha", [20.0, 20.1, float("inf")])
def test_the_number_is_named(alpha):
    (sentence,) = remarks(alpha)
    assert f"α = {alpha:g} can select nothing" in sentence
    assert "1/p = 20" in sentence
    assert "100 terms in the full set, 5 in the forget set" in sentence


@pytest.mark.parametrize(
    "harmless",
    [
        {"alpha": 19.99},
        {"alpha": 20.0, "role": Role.RETAIN},
        {"alpha": 20.0, "unit": "batch"},
        {"alpha": 9, "forget": 0},
    ],
)
def test_there_is_no_alarm_where_the_bound_does_not_hold(harmless):
    assert remarks(**harmless) == ()


def test_there_is_no_remark_without_evidence():
    assert SSD().remarks(Evidence()) == ()


def measured(estimator):
    """The importances of 2 forgotten samples and of the 6 in the full set, 1/p = 3."""
    scene = Scene(layers=("conv",), dtype=torch.float64, samples=2, batch=2)
    model, forget = scene.model(), scene.data("forget")
    full = forget + attrs.evolve(scene, samples=4).data("retain")

    def estimate(data, role):
        return estimator.estimate(model, data, objective=CrossEntropy(), role=role)

    return model, Evidence(forget=estimate(forget, "forget"), reference=estimate(full, "full"))


def test_on_measured_importances_the_warning_comes_and_nothing_is_selected():
    model, evidence = measured(DiagonalFisher())
    with pytest.warns(UnlearnKitWarning, match=r"ssd: α = 3 can select nothing: F_f/F_D is at most 1/p = 3 "):
        report = SSD(alpha=3.0).unlearn(model, evidence)
    assert report.changed == 0
    assert report.remarks
    assert "1/p = 3" in report.sentence()


def test_below_the_bound_there_is_no_warning_and_something_is_selected():
    model, evidence = measured(DiagonalFisher())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = SSD(alpha=1.5).unlearn(model, evidence)
    assert report.changed > 0
    assert report.remarks == ()


def test_the_bound_does_not_hold_for_squares_of_batch_means_and_nothing_is_said():
    model, evidence = measured(BatchedDiagonalFisher())
    assert SSD(alpha=3.0).unlearn(model, evidence).remarks == ()
