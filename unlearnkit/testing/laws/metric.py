"""The laws of every number that says how well a model forgot."""

from functools import partial
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from unlearnkit import EvaluationInputs, Metric, UnsupportedModelError
from unlearnkit.testing.cases import LawCase, law_cases
from unlearnkit.testing.law import Law, holds
from unlearnkit.testing.snapshot import Snapshot, same
from unlearnkit.utils.rng import private_rng


def _cases(_: Any) -> st.SearchStrategy[LawCase]:
    return law_cases(largest=4)


def _evaluate(metric: Metric, inputs: EvaluationInputs) -> dict[str, float | None] | None:
    """Measure, or return None where the metric fails: the law "runs" reports that."""
    try:
        return metric.evaluate(inputs)
    except Exception:  # noqa: BLE001 - see above
        return None


def _runs(metric: Metric, law_case: LawCase) -> None:
    try:
        values = metric.evaluate(law_case.evaluation_inputs())
    except UnsupportedModelError:
        assume(False)
    else:
        holds(values, "no value at all: say None for what does not apply")


def _untouched(metric: Metric, law_case: LawCase) -> None:
    inputs = law_case.evaluation_inputs()
    models = {"model": inputs.model, "original": inputs.original, "retrained": inputs.retrained[0]}
    before = {name: Snapshot.take(model) for name, model in models.items() if model is not None}
    if _evaluate(metric, inputs) is None:
        return
    for name, was in before.items():
        model = models[name]
        assert model is not None
        changed = was.differences(Snapshot.take(model))
        holds(not changed, f"inputs.{name}, changed: {', '.join(changed)}")


def _data(metric: Metric, law_case: LawCase) -> None:
    inputs = law_case.evaluation_inputs()
    if _evaluate(metric, inputs) is not None:
        for name, batches in inputs.splits.items():
            holds(same(batches, law_case.data(name)), f"the batches of {name!r} were edited")


def _range(metric: Metric, law_case: LawCase) -> None:
    low, high = metric.traits.low, metric.traits.high
    for name, value in (_evaluate(metric, law_case.evaluation_inputs()) or {}).items():
        holds(value is None or low <= value <= high, f"{name} = {value}, expected {low:g} to {high:g}")


def _deterministic(metric: Metric, law_case: LawCase) -> None:
    runs = []
    for seed in (1, 2):
        with private_rng(seed=seed):
            runs.append(_evaluate(metric, law_case.evaluation_inputs()))
    holds(same(*runs), f"two runs on the same input gave {runs[0]} and {runs[1]}")


_law = partial(Law, cases=_cases, examples=20)

METRIC_LAWS = (
    _law(
        name="runs",
        sentence="evaluate() measures every model that the metric does not refuse (UnsupportedModelError).",
        holds=_runs,
        rejects="divides by the number of samples beyond the third",
    ),
    _law(
        name="untouched",
        sentence="The models are left as found: weights, buffers, gradients, modes, ties, random state.",
        holds=_untouched,
        rejects="trains the model that the next metric measures",
    ),
    _law(
        name="data",
        sentence="Batches are left as they are.",
        holds=_data,
        rejects="sorts the labels in place",
    ),
    _law(
        name="range",
        sentence="Values are None or lie between traits.low and traits.high; NaN does not.",
        holds=_range,
        promise="low, high",
        applies=lambda _: True,
        waiver="the true bounds low=… and high=…",
        rejects="calls a percentage a fraction",
    ),
    _law(
        name="deterministic",
        sentence="The same input gives the same values on one CPU, whatever the global generators are at.",
        holds=_deterministic,
        rejects="looks at a random sample drawn from the global generator",
    ),
)
"""What every metric owes."""
