"""The shipped estimators against the slow oracles."""

import pytest
import torch
import wrong_gradient_model as permuted

from unlearnkit import BatchedDiagonalFisher, CrossEntropy, DiagonalFisher
from unlearnkit.testing import LawCase, Snapshot, batched_squares, per_sample_squares

SCENES = [
    LawCase(samples=5, batch=2, dtype=torch.float64),
    LawCase(samples=5, batch=2, dtype=torch.float64, layers=("conv", "batch-norm", "attention"), tied=True),
    LawCase(samples=5, batch=2, dtype=torch.float64, layers=("layer-norm",), embedding=True, tied=True, seed=1),
    LawCase(samples=5, batch=2, layers=("linear", "dropout"), frozen=True),
]


def close(importance, expected, rtol):
    assert list(importance.totals) == list(expected)
    for name, total in importance.totals.items():
        torch.testing.assert_close(total.double(), expected[name], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("law_case", SCENES, ids=range(len(SCENES)))
def test_diagonal_fisher_is_one_sample_at_a_time(law_case):
    model, data = law_case.model(), law_case.data("forget")
    found = DiagonalFisher().estimate(model, data, objective=CrossEntropy())
    close(found, per_sample_squares(model, data, CrossEntropy()), rtol=1e-4)
    assert found.count == 5


@pytest.mark.parametrize("law_case", SCENES, ids=range(len(SCENES)))
def test_batched_diagonal_fisher_is_the_notebook_s_loop(law_case):
    model, data = law_case.model(), law_case.data("forget")
    found = BatchedDiagonalFisher(weights="equal").estimate(model, data, objective=CrossEntropy())
    close(found, batched_squares(model, data, CrossEntropy()), rtol=1e-4)
    assert found.count == 3


def test_per_sample_oracle_is_correct_where_torch_is_wrong():
    """torch's squares of an instance norm with a permutation behind it were off by 65 to 88 % on a CPU, in its own
    weights and in those before it."""
    found, expected = (per_sample_squares(model, permuted.data(3, 1), CrossEntropy()) for model in permuted.pair())
    torch.testing.assert_close(found, expected)


def test_the_oracles_leave_the_model_alone():
    law_case = LawCase(layers=("batch-norm", "dropout"))
    model = law_case.model()
    before = Snapshot.take(model)
    for oracle in (per_sample_squares, batched_squares):
        oracle(model, law_case.data("forget"), CrossEntropy())
    assert before.differences(Snapshot.take(model)) == []


def test_on_batches_of_one_both_are_the_same():
    law_case = LawCase(samples=3, batch=1)
    one, other = (
        o(law_case.model(), law_case.data("f"), CrossEntropy()) for o in (per_sample_squares, batched_squares)
    )
    torch.testing.assert_close(one, other)
