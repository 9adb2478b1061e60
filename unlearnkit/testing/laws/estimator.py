"""The laws of everything that measures importances."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import Importance, ImportanceEstimator, UnsupportedModelError
from unlearnkit.testing.cases import Batch, Broken, LawCase, Scaled, batched, law_cases
from unlearnkit.testing.law import Law, holds
from unlearnkit.testing.models import SmallNet
from unlearnkit.testing.snapshot import Snapshot, same
from unlearnkit.utils.rng import private_rng

_RELATIVE = 1e-6  # of the largest total; the laws with a tolerance are tried in float64


def _measure(
    estimator: ImportanceEstimator, law_case: LawCase, batches: Iterable[Batch] | None = None, *, factor: float = 1.0
) -> Importance | None:
    """Measure, or return None where the estimator fails: the law "runs" reports that."""
    data = [(x.clone(), y.clone()) for x, y in (law_case.data("forget") if batches is None else batches)]
    try:
        return estimator.estimate(law_case.model(), data, objective=Scaled(factor=factor))
    except Exception:  # noqa: BLE001 - see above
        return None


def _close(seen: Importance | None, expected: dict[str, Tensor], what: str) -> None:
    if seen is None:
        return
    for name, total in seen.totals.items():
        want = expected[name]
        largest = float(torch.maximum(total.abs().max(), want.abs().max()))
        error = float((total - want).abs().max())
        holds(error <= _RELATIVE * largest, f"{what}: {name} is {total.tolist()}, expected {want.tolist()}")


def _cases(_: Any) -> st.SearchStrategy[LawCase]:
    return law_cases(largest=4)


def _exact_cases(_: Any) -> st.SearchStrategy[LawCase]:
    return law_cases(dtypes=(torch.float64,), largest=4)


def _runs(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    try:
        estimator.estimate(law_case.model(), law_case.data("forget"), objective=Scaled(factor=1.0))
    except UnsupportedModelError:
        assume(False)


def _watched(
    estimator: ImportanceEstimator, law_case: LawCase, data: Iterable[Batch]
) -> tuple[SmallNet, bool, Snapshot, Snapshot]:
    model = law_case.model()
    before, done = Snapshot.take(model), True
    try:
        estimator.estimate(model, data, objective=Scaled(factor=1.0))
    except Exception:  # noqa: BLE001 - the caller looks at what is left behind
        done = False
    return model, done, before, Snapshot.take(model)


def _untouched(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    _, done, before, after = _watched(estimator, law_case, law_case.data("forget"))
    changed = before.differences(after)
    holds(not done or not changed, f"changed: {', '.join(changed)}")


def _rolls_back(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    _, done, before, after = _watched(estimator, law_case, Broken(law_case.data("forget")))
    changed = before.differences(after)
    holds(done or not changed, f"estimate() raised, and these differ: {', '.join(changed)}")


def _data(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    batches = law_case.data("forget")
    _, done, _, _ = _watched(estimator, law_case, batches)
    holds(not done or same(batches, law_case.data("forget")), f"the batches are now {batches}")


def _non_negative(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    found = _measure(estimator, law_case)
    for name, total in found.totals.items() if found else ():
        holds((total >= 0).all(), f"{name}: {total.tolist()}")


def _count(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    found = _measure(estimator, law_case)
    if found is not None:
        seen = f"{law_case.samples} samples were counted as count={found.count}, samples={found.samples}"
        holds((found.count, found.samples) == (law_case.samples, law_case.samples), seen)


def _additive(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    one, other = law_case.data("forget"), law_case.data("retain")
    parts, whole = (
        [_measure(estimator, law_case, data) for data in (one, other)],
        _measure(estimator, law_case, one + other),
    )
    if parts[0] is not None and parts[1] is not None:
        summed = {name: total + parts[1].totals[name] for name, total in parts[0].totals.items()}
        _close(whole, summed, "I(A ∪ B) is not I(A) + I(B)")


def _joined(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _reordered(estimator: ImportanceEstimator, case: tuple[LawCase, list[int]]) -> None:
    law_case, order = case
    x, y = _joined(law_case.data("forget"))
    places = torch.tensor([i for i in order if i < len(x)])
    first = _measure(estimator, law_case)
    if first is not None:
        again = _measure(estimator, law_case, batched(x[places], y[places], law_case.batch))
        _close(again, dict(first.totals), f"in the order {places.tolist()}")


def _rebatched(estimator: ImportanceEstimator, case: tuple[LawCase, int]) -> None:
    law_case, size = case
    first = _measure(estimator, law_case)
    if first is not None:
        again = _measure(estimator, law_case, batched(*_joined(law_case.data("forget")), size))
        _close(again, dict(first.totals), f"in batches of {size} instead of {law_case.batch}")


def _quadratic(estimator: ImportanceEstimator, case: tuple[LawCase, float]) -> None:
    law_case, factor = case
    one, scaled = _measure(estimator, law_case), _measure(estimator, law_case, factor=factor)
    if one is not None:
        squared = {name: factor**2 * total for name, total in one.totals.items()}
        _close(scaled, squared, f"with the loss times {factor:g}")


def _deterministic(estimator: ImportanceEstimator, law_case: LawCase) -> None:
    runs = []
    for seed in (1, 2):
        with private_rng(seed=seed):
            runs.append(_measure(estimator, law_case))
    one, other = runs
    if one is not None and other is not None:
        changed = [name for name, total in one.totals.items() if not same(total, other.totals[name])]
        holds(not changed, f"two runs on the same input differ in {', '.join(changed)}")


_law = partial(Law, cases=_cases, examples=20)

ESTIMATOR_LAWS = (
    _law(
        name="runs",
        sentence="estimate() measures every model that the estimator does not refuse (UnsupportedModelError).",
        holds=_runs,
        rejects="returns importances for all parameters, frozen ones included",
    ),
    _law(
        name="untouched",
        sentence="The model is left as found: weights, buffers, gradients, modes, ties, random state.",
        holds=_untouched,
        rejects="leaves the model in eval mode",
    ),
    _law(
        name="rolls-back",
        sentence="Data that break off in the middle leave the model as it was.",
        holds=_rolls_back,
        rejects="clears the gradients before an error is handed on",
    ),
    _law(
        name="data",
        sentence="Batches are left as they are.",
        holds=_data,
        rejects="normalises the inputs in place",
    ),
    _law(
        name="non-negative",
        sentence="Totals are ≥ 0.",
        holds=_non_negative,
        rejects="adds gradients instead of their squares",
    ),
    _law(
        name="count",
        sentence="Each sample counts one term.",
        holds=_count,
        applies=lambda estimator: estimator.traits.unit == "sample",
        promise="unit",
        waiver='unit="batch"',
        rejects="counts each batch as one term",
    ),
    _law(
        name="additive",
        sentence="I(A) + I(B) = I(A ∪ B).",
        cases=_exact_cases,
        holds=_additive,
        promise="batch_free",
        rejects="divides by the number of samples",
    ),
    _law(
        name="order-free",
        sentence="Totals do not depend on the order of the samples.",
        cases=lambda _: st.tuples(_exact_cases(None), st.permutations(range(4))),
        holds=_reordered,
        promise="batch_free",
        rejects="remembers a set of samples and doubles it when it comes back in another order",
    ),
    _law(
        name="batch-size-free",
        sentence="Totals do not depend on how the samples are cut into batches.",
        cases=lambda _: st.tuples(_exact_cases(None), st.integers(1, 4)),
        holds=_rebatched,
        promise="batch_free",
        rejects="adds a constant for every batch",
    ),
    _law(
        name="quadratic",
        sentence="A loss times c gives totals times c².",
        cases=lambda _: st.tuples(_exact_cases(None), st.sampled_from((2.0, 0.5, 3.0))),
        holds=_quadratic,
        promise="quadratic",
        rejects="takes absolute values instead of squares",
    ),
    _law(
        name="deterministic",
        sentence="The same input gives the same bits on one CPU, whatever the global generators are at.",
        holds=_deterministic,
        promise="deterministic",
        rejects="draws labels from the global generator",
    ),
)
"""What every estimator owes, or promises in its traits."""
