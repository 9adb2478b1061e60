"""`ssd` warns when α ≥ 1/p: it can select nothing, because every forgotten sample is in the full set too."""

import warnings

import attrs
import pytest
import torch
from unlearnkit_methods.ssd import SelectiveSynapticDampening as SSD

from unlearnkit import (
    BatchedDiagonalFisher,
    CrossEntropy,
    DiagonalFisher,
    Importance,
    SketchedFisher,
    UnlearningInputs,
    UnlearnKitWarning,
)
from unlearnkit.importance import Fingerprint, Role
from unlearnkit.testing import LawCase


def importance(count, role, unit="sample"):
    return Importance(
        totals={"w": torch.ones(2)}, count=count, samples=count, role=role, fingerprint=Fingerprint(unit=unit)
    )


def remarks(alpha, *, forget=5, reference=100, role=Role.FULL, unit="sample"):
    inputs = UnlearningInputs(forget=importance(forget, Role.FORGET, unit), reference=importance(reference, role, unit))
    return SSD(alpha=alpha).remarks(inputs)


@pytest.mark.parametrize("alpha", [20.0, 20.1, float("inf")])
def test_remark_names_the_bound(alpha):
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
def test_no_remark_where_the_bound_does_not_hold(harmless):
    assert remarks(**harmless) == ()


def test_no_remark_without_counts():
    assert SSD().remarks(UnlearningInputs()) == ()


def measured(estimator, *, forgotten_last=False):
    """The importances of 2 forgotten samples and of the 6 in the full set, 1/p = 3."""
    law_case = LawCase(layers=("conv",), dtype=torch.float64, samples=2, batch=2)
    model, forget = law_case.model(), law_case.data("forget")
    retain = attrs.evolve(law_case, samples=4).data("retain")
    full = retain + forget if forgotten_last else forget + retain

    def estimate(data, role):
        return estimator.estimate(model, data, objective=CrossEntropy(), role=role)

    return model, UnlearningInputs(forget=estimate(forget, "forget"), reference=estimate(full, "full"))


def test_measured_importances_give_the_warning_and_no_selection():
    model, inputs = measured(DiagonalFisher())
    with pytest.warns(UnlearnKitWarning, match=r"ssd: α = 3 can select nothing: F_f/F_D is at most 1/p = 3 "):
        report = SSD(alpha=3.0).unlearn(model, inputs)
    assert report.changed == 0
    assert report.remarks
    assert "1/p = 3" in report.sentence()


def test_warning_for_a_sketch_mentions_its_error():
    """The forgotten samples have other signs in the pass over the full set, so F_f/F_D may exceed 1/p."""
    model, inputs = measured(SketchedFisher(seed=4), forgotten_last=True)
    with pytest.warns(UnlearnKitWarning, match=r"α = 3 can select nothing but by the error .* at most 1/p = 3 "):
        report = SSD(alpha=3.0).unlearn(model, inputs)
    assert report.changed > 0


@pytest.mark.parametrize("error", [None, 0.1])
@pytest.mark.parametrize("whose", ["forget", "reference"])
def test_one_estimated_importance_changes_the_warning(whose, error):
    exact = UnlearningInputs(forget=importance(5, Role.FORGET), reference=importance(100, Role.FULL))
    estimated = attrs.evolve(getattr(exact, whose), relative_error=error)
    (sentence,) = SSD(alpha=20.0).remarks(attrs.evolve(exact, **{whose: estimated}))
    assert "nothing but by the error" in sentence


def test_below_the_bound_there_is_no_warning_and_something_is_selected():
    model, inputs = measured(DiagonalFisher())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = SSD(alpha=1.5).unlearn(model, inputs)
    assert report.changed > 0
    assert report.remarks == ()


def test_no_remark_for_batched_importances():
    model, inputs = measured(BatchedDiagonalFisher())
    assert SSD(alpha=3.0).remarks(inputs) == ()
    (said,) = SSD(alpha=3.0).unlearn(model, inputs).remarks
    assert said.startswith("The largest F_f/F_r seen is ")
