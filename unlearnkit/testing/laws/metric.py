"""The laws of metrics."""

from functools import partial

import attrs

from unlearnkit import EvaluationInputs, Metric
from unlearnkit.testing.cases import LawCase, law_cases
from unlearnkit.testing.law import holds, law, run_twice
from unlearnkit.testing.snapshot import Snapshot, same

_law = partial(law, Metric, cases=lambda _: law_cases(largest=4), examples=20)


def _evaluate(metric: Metric, inputs: EvaluationInputs) -> dict[str, float | None] | None:
    """Measure, or return None where the metric fails: the law "runs" reports that."""
    try:
        return metric.evaluate(inputs)
    except Exception:  # noqa: BLE001 - see above
        return None


@_law(rejects="divides by the number of samples beyond the third")
def runs(metric: Metric, law_case: LawCase) -> None:
    """evaluate() measures every model that the metric does not refuse (UnsupportedModelError)."""
    values = metric.evaluate(law_case.evaluation_inputs())
    holds(values, "no value at all: say None for what does not apply")


@_law(rejects="takes the first of the retrained models, of which there may be none")
def missing_inputs(metric: Metric, law_case: LawCase) -> None:
    """Without an original, retrained models or unseen samples to forget, it measures the rest or says NotApplicable."""
    inputs = law_case.evaluation_inputs()
    if _evaluate(metric, inputs) is not None:
        splits = {name: batches for name, batches in inputs.splits.items() if name != "forget-test"}
        for changed in ({"retrained": ()}, {"original": None}, {"splits": splits}):
            values = metric.evaluate(attrs.evolve(inputs, **changed))
            holds(values, f"no value at all without {', '.join(changed)}: say None for what does not apply")


@_law(rejects="trains the model that the next metric measures")
def untouched(metric: Metric, law_case: LawCase) -> None:
    """The models are unchanged: weights, buffers, gradients, modes, ties, random state."""
    inputs = law_case.evaluation_inputs()
    models = {"model": inputs.model, "original": inputs.original, "retrained": inputs.retrained[0]}
    before = {name: (model, Snapshot.take(model)) for name, model in models.items() if model is not None}
    if _evaluate(metric, inputs) is not None:
        for name, (model, was) in before.items():
            changed = was.differences(Snapshot.take(model))
            holds(not changed, f"inputs.{name}, changed: {', '.join(changed)}")


@_law(rejects="sorts the labels in place")
def data(metric: Metric, law_case: LawCase) -> None:
    """Batches are left as they are."""
    inputs = law_case.evaluation_inputs()
    if _evaluate(metric, inputs) is not None:
        for name, batches in inputs.splits.items():
            holds(same(batches, law_case.data(name)), f"the batches of {name!r} were edited")


@_law(
    promise="low, high",
    applies=lambda _: True,
    waiver="the true bounds low=… and high=…",
    rejects="calls a percentage a fraction",
)
def range_(metric: Metric, law_case: LawCase) -> None:
    """Values are None or lie between traits.low and traits.high; NaN does not."""
    low, high = metric.traits.low, metric.traits.high
    for name, value in (_evaluate(metric, law_case.evaluation_inputs()) or {}).items():
        holds(value is None or low <= value <= high, f"{name} = {value}, expected {low:g} to {high:g}")


@_law(rejects="measures a random sample, drawn from the global generator")
def deterministic(metric: Metric, law_case: LawCase) -> None:
    """The same input gives the same values on one CPU, whatever the global generators are at."""
    one, other = run_twice(lambda: _evaluate(metric, law_case.evaluation_inputs()))
    holds(same(one, other), f"two runs on the same input gave {one} and {other}")
