"""The laws of importance estimators."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import Importance, ImportanceEstimator
from unlearnkit.testing.cases import Batch, LawCase, Scaled, batched, broken, law_cases
from unlearnkit.testing.law import CaseSkipped, holds, law, run_twice
from unlearnkit.testing.snapshot import Snapshot, same

_RELATIVE = 1e-6  # of the largest total; the laws with a tolerance are tried in float64


def _measure(
    estimator: ImportanceEstimator, law_case: LawCase, batches: Iterable[Batch] | None = None, *, factor: float = 1.0
) -> Importance:
    data = [(x.clone(), y.clone()) for x, y in (law_case.data("forget") if batches is None else batches)]
    try:
        return estimator.estimate(law_case.model(), data, objective=Scaled(factor=factor), progress=False)
    except Exception as error:
        raise CaseSkipped from error


def _close(seen: Importance, expected: Mapping[str, Tensor], what: str) -> None:
    for name, total in seen.totals.items():
        want = expected[name]
        largest = float(torch.maximum(total.abs().max(), want.abs().max()))
        error = float((total - want).abs().max())
        holds(error <= _RELATIVE * largest, f"{what}: {name} is {total.tolist()}, expected {want.tolist()}")


def _watched(estimator: ImportanceEstimator, law_case: LawCase, data: Iterable[Batch]) -> tuple[bool, list[str]]:
    """Return whether the estimator succeeded, and what it changed of the model."""
    model = law_case.model()
    before, done = Snapshot.take(model), True
    try:
        estimator.estimate(model, data, objective=Scaled(factor=1.0), progress=False)
    except Exception:  # noqa: BLE001 - the caller checks the model
        done = False
    return done, before.differences(Snapshot.take(model))


def _exact_cases(_: Any) -> st.SearchStrategy[LawCase]:
    return law_cases(dtypes=(torch.float64,), largest=4)


_law = partial(law, ImportanceEstimator, cases=lambda _: law_cases(largest=4), examples=20)


@_law(rejects="returns importances for all parameters, frozen ones included")
def runs(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """estimate() measures every model that the estimator does not refuse (UnsupportedModelError)."""
    estimator.estimate(law_case.model(), law_case.data("forget"), objective=Scaled(factor=1.0), progress=False)


@_law(rejects="leaves the model in eval mode")
def untouched(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """The model is unchanged: weights, buffers, gradients, modes, ties, random state."""
    done, changed = _watched(estimator, law_case, law_case.data("forget"))
    holds(not done or not changed, f"changed: {', '.join(changed)}")


@_law(rejects="clears the gradients before it raises")
def rolls_back(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """If reading the data fails midway, the model is left as it was."""
    done, changed = _watched(estimator, law_case, broken(law_case.data("forget")))
    holds(done or not changed, f"estimate() raised, and these differ: {', '.join(changed)}")


@_law(rejects="normalises the inputs in place")
def data(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """Batches are left as they are."""
    batches = law_case.data("forget")
    done, _ = _watched(estimator, law_case, batches)
    holds(not done or same(batches, law_case.data("forget")), f"the batches are now {batches}")


@_law(rejects="adds gradients instead of their squares")
def non_negative(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """Totals are ≥ 0."""
    for name, total in _measure(estimator, law_case).totals.items():
        holds((total >= 0).all(), f"{name}: {total.tolist()}")


@_law(
    promise="unit",
    applies=lambda estimator: estimator.traits.unit == "sample",
    waiver='unit="batch"',
    rejects="counts each batch as one term",
)
def count(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """Each sample counts one term."""
    found = _measure(estimator, law_case)
    seen = f"{law_case.samples} samples were counted as count={found.count}, samples={found.samples}"
    holds(found.count == found.samples == law_case.samples, seen)


@_law(cases=_exact_cases, promise="batch_free", rejects="divides by the number of samples")
def additive(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """I(A) + I(B) = I(A ∪ B)."""
    a, b = law_case.data("forget"), law_case.data("retain")
    one, other, union = (_measure(estimator, law_case, data) for data in (a, b, a + b))
    summed = {name: total + other.totals[name] for name, total in one.totals.items()}
    _close(union, summed, "I(A ∪ B) is not I(A) + I(B)")


def _joined(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@_law(
    cases=lambda _: st.tuples(_exact_cases(None), st.permutations(range(4))),
    promise="batch_free",
    rejects="remembers a set of samples and doubles it when it comes back in another order",
)
def order_free(estimator: ImportanceEstimator, case: tuple[LawCase, list[int]]) -> None:
    """Totals do not depend on the order of the samples."""
    law_case, order = case
    x, y = _joined(law_case.data("forget"))
    expected = _measure(estimator, law_case).totals
    even_first = [*range(0, len(x), 2), *range(1, len(x), 2)]  # nearly always other batches, drawn ones seldom
    for places in ([i for i in order if i < len(x)], even_first):
        again = _measure(estimator, law_case, batched(x[places], y[places], law_case.batch))
        _close(again, expected, f"in the order {places}")


@_law(
    cases=lambda _: st.tuples(_exact_cases(None), st.integers(1, 4)),
    promise="batch_free",
    rejects="adds a constant for every batch",
)
def batch_size_free(estimator: ImportanceEstimator, case: tuple[LawCase, int]) -> None:
    """Totals do not depend on how the samples are cut into batches."""
    law_case, size = case
    expected = _measure(estimator, law_case).totals
    again = _measure(estimator, law_case, batched(*_joined(law_case.data("forget")), size))
    _close(again, expected, f"in batches of {size} instead of {law_case.batch}")


@_law(
    cases=lambda _: st.tuples(_exact_cases(None), st.sampled_from((2.0, 0.5, 3.0))),
    promise="quadratic",
    rejects="takes absolute values instead of squares",
)
def quadratic(estimator: ImportanceEstimator, case: tuple[LawCase, float]) -> None:
    """A loss times c gives totals times c²."""
    law_case, factor = case
    squared = {name: factor**2 * total for name, total in _measure(estimator, law_case).totals.items()}
    _close(_measure(estimator, law_case, factor=factor), squared, f"with the loss times {factor:g}")


@_law(promise="deterministic", rejects="draws labels from the global generator")
def deterministic(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    """The same input gives the same bits on one CPU, whatever the global generators are at."""
    one, other = run_twice(lambda: _measure(estimator, law_case).totals)
    changed = [name for name, total in one.items() if not same(total, other[name])]
    holds(not changed, f"two runs on the same input differ in {', '.join(changed)}")
