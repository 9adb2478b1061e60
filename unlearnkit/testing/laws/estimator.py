"""The laws of everything that measures importances."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import Importance, ImportanceEstimator, UnsupportedModelError
from unlearnkit.rng import private_rng
from unlearnkit.testing.law import Law, holds
from unlearnkit.testing.models import SmallNet
from unlearnkit.testing.scene import Batch, Broken, Scaled, Scene, batched, scenes
from unlearnkit.testing.snapshot import Snapshot, same

_RELATIVE = 1e-6  # of the largest total; the laws with a tolerance are tried in float64


def _measure(
    estimator: ImportanceEstimator, scene: Scene, batches: Iterable[Batch] | None = None, *, factor: float = 1.0
) -> Importance | None:
    """Measure, or return None where the estimator fails: the law "runs" reports that."""
    data = [(x.clone(), y.clone()) for x, y in (scene.data("forget") if batches is None else batches)]
    try:
        return estimator.estimate(scene.model(), data, objective=Scaled(factor=factor))
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


def _scenes(_: Any) -> st.SearchStrategy[Scene]:
    return scenes(largest=4)


def _exact_scenes(_: Any) -> st.SearchStrategy[Scene]:
    return scenes(dtypes=(torch.float64,), largest=4)


def _runs(estimator: ImportanceEstimator, scene: Scene) -> None:
    try:
        estimator.estimate(scene.model(), scene.data("forget"), objective=Scaled(factor=1.0))
    except UnsupportedModelError:
        assume(False)


def _watched(
    estimator: ImportanceEstimator, scene: Scene, data: Iterable[Batch]
) -> tuple[SmallNet, bool, Snapshot, Snapshot]:
    model = scene.model()
    before, done = Snapshot.take(model), True
    try:
        estimator.estimate(model, data, objective=Scaled(factor=1.0))
    except Exception:  # noqa: BLE001 - the caller looks at what is left behind
        done = False
    return model, done, before, Snapshot.take(model)


def _untouched(estimator: ImportanceEstimator, scene: Scene) -> None:
    _, done, before, after = _watched(estimator, scene, scene.data("forget"))
    changed = before.differences(after)
    holds(not done or not changed, f"changed: {', '.join(changed)}")


def _rolls_back(estimator: ImportanceEstimator, scene: Scene) -> None:
    _, done, before, after = _watched(estimator, scene, Broken(scene.data("forget")))
    changed = before.differences(after)
    holds(done or not changed, f"estimate() raised, and these differ: {', '.join(changed)}")


def _data(estimator: ImportanceEstimator, scene: Scene) -> None:
    batches = scene.data("forget")
    _, done, _, _ = _watched(estimator, scene, batches)
    holds(not done or same(batches, scene.data("forget")), f"the batches are now {batches}")


def _non_negative(estimator: ImportanceEstimator, scene: Scene) -> None:
    found = _measure(estimator, scene)
    for name, total in found.totals.items() if found else ():
        holds((total >= 0).all(), f"{name}: {total.tolist()}")


def _count(estimator: ImportanceEstimator, scene: Scene) -> None:
    found = _measure(estimator, scene)
    if found is not None:
        seen = f"{scene.samples} samples were counted as count={found.count}, samples={found.samples}"
        holds((found.count, found.samples) == (scene.samples, scene.samples), seen)


def _additive(estimator: ImportanceEstimator, scene: Scene) -> None:
    one, other = scene.data("forget"), scene.data("retain")
    parts, whole = [_measure(estimator, scene, data) for data in (one, other)], _measure(estimator, scene, one + other)
    if parts[0] is not None and parts[1] is not None:
        summed = {name: total + parts[1].totals[name] for name, total in parts[0].totals.items()}
        _close(whole, summed, "I(A ∪ B) is not I(A) + I(B)")


def _joined(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _reordered(estimator: ImportanceEstimator, case: tuple[Scene, list[int]]) -> None:
    scene, order = case
    x, y = _joined(scene.data("forget"))
    places = torch.tensor([i for i in order if i < len(x)])
    first = _measure(estimator, scene)
    if first is not None:
        again = _measure(estimator, scene, batched(x[places], y[places], scene.batch))
        _close(again, dict(first.totals), f"in the order {places.tolist()}")


def _rebatched(estimator: ImportanceEstimator, case: tuple[Scene, int]) -> None:
    scene, size = case
    first = _measure(estimator, scene)
    if first is not None:
        again = _measure(estimator, scene, batched(*_joined(scene.data("forget")), size))
        _close(again, dict(first.totals), f"in batches of {size} instead of {scene.batch}")


def _quadratic(estimator: ImportanceEstimator, case: tuple[Scene, float]) -> None:
    scene, factor = case
    one, scaled = _measure(estimator, scene), _measure(estimator, scene, factor=factor)
    if one is not None:
        squared = {name: factor**2 * total for name, total in one.totals.items()}
        _close(scaled, squared, f"with the loss times {factor:g}")


def _deterministic(estimator: ImportanceEstimator, scene: Scene) -> None:
    runs = []
    for seed in (1, 2):
        with private_rng(seed=seed):
            runs.append(_measure(estimator, scene))
    one, other = runs
    if one is not None and other is not None:
        changed = [name for name, total in one.totals.items() if not same(total, other.totals[name])]
        holds(not changed, f"two runs on the same input differ in {', '.join(changed)}")


def _promises(trait: str, value: Any = True) -> Callable[[Any], bool]:
    return lambda estimator: bool(getattr(estimator.traits, trait) == value)


ESTIMATOR_LAWS = (
    Law(
        name="runs",
        sentence="estimate() measures every model that the estimator does not refuse (UnsupportedModelError).",
        cases=_scenes,
        holds=_runs,
        examples=20,
        rejects="returns importances for all parameters, frozen ones included",
    ),
    Law(
        name="untouched",
        sentence="The model is left as found: weights, buffers, gradients, modes, ties, random state.",
        cases=_scenes,
        holds=_untouched,
        examples=20,
        rejects="leaves the model in eval mode",
    ),
    Law(
        name="rolls-back",
        sentence="Data that break off in the middle leave the model as it was.",
        cases=_scenes,
        holds=_rolls_back,
        examples=20,
        rejects="clears the gradients before an error is handed on",
    ),
    Law(
        name="data",
        sentence="Batches are left as they are.",
        cases=_scenes,
        holds=_data,
        examples=20,
        rejects="normalises the inputs in place",
    ),
    Law(
        name="non-negative",
        sentence="Totals are ≥ 0.",
        cases=_scenes,
        holds=_non_negative,
        examples=20,
        rejects="adds gradients instead of their squares",
    ),
    Law(
        name="count",
        sentence="Each sample counts one term.",
        cases=_scenes,
        holds=_count,
        applies=_promises("unit", "sample"),
        promise="unit",
        waiver='unit="batch"',
        examples=20,
        rejects="counts each batch as one term",
    ),
    Law(
        name="additive",
        sentence="I(A) + I(B) = I(A ∪ B).",
        cases=_exact_scenes,
        holds=_additive,
        applies=_promises("batch_free"),
        promise="batch_free",
        examples=20,
        rejects="divides by the number of samples",
    ),
    Law(
        name="order-free",
        sentence="Totals do not depend on the order of the samples.",
        cases=lambda _: st.tuples(_exact_scenes(None), st.permutations(range(4))),
        holds=_reordered,
        applies=_promises("batch_free"),
        promise="batch_free",
        examples=20,
        rejects="remembers a set of samples and doubles it when it comes back in another order",
    ),
    Law(
        name="batch-size-free",
        sentence="Totals do not depend on how the samples are cut into batches.",
        cases=lambda _: st.tuples(_exact_scenes(None), st.integers(1, 4)),
        holds=_rebatched,
        applies=_promises("batch_free"),
        promise="batch_free",
        examples=20,
        rejects="adds a constant for every batch",
    ),
    Law(
        name="quadratic",
        sentence="A loss times c gives totals times c².",
        cases=lambda _: st.tuples(_exact_scenes(None), st.sampled_from((2.0, 0.5, 3.0))),
        holds=_quadratic,
        applies=_promises("quadratic"),
        promise="quadratic",
        examples=20,
        rejects="takes absolute values instead of squares",
    ),
    Law(
        name="deterministic",
        sentence="The same input gives the same bits on one CPU, whatever the global generators are at.",
        cases=_scenes,
        holds=_deterministic,
        applies=_promises("deterministic"),
        promise="deterministic",
        examples=20,
        rejects="draws labels from the global generator",
    ),
)
"""What every estimator owes, or promises in its traits."""
