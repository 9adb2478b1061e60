"""The reference page of the laws, made from the laws."""

from collections.abc import Iterable

from unlearnkit import ElementwiseUnlearner, ImportanceEstimator, Metric, TrainingUnlearner, Unlearner
from unlearnkit.testing.law import Law
from unlearnkit.testing.laws import LAWS

_KINDS = (
    (Unlearner, "Every method", "What `unlearnkit.Unlearner.unlearn` does to a model, whatever the method is."),
    (
        ElementwiseUnlearner,
        "Elementwise methods",
        "Besides the laws of every method: what `rule` makes of θ, F_f and F_r, from bfloat16 to float64.",
    ),
    (TrainingUnlearner, "Methods that train", "Besides the laws of every method: subclasses of `TrainingUnlearner`."),
    (ImportanceEstimator, "Importance estimators", "What `unlearnkit.ImportanceEstimator.estimate` measures."),
    (Metric, "Metrics", "What `unlearnkit.Metric.evaluate` says."),
)

_HEAD = """\
# The laws

This page is made by `python -m unlearnkit.testing`; a test keeps it equal.

A law is one sentence about every method, estimator or metric of a kind, with a search for an input that breaks it.
Some laws hold for all; the others follow from what a class promises in its `traits`. Check yours with

```python
from unlearnkit.testing import parametrize_with_checks

@parametrize_with_checks([MyMethod(alpha=10.0), MyMethod(alpha=1.0)])
def test_contract(subject, law):
    law.check(subject)
```

or, without pytest, with `check_unlearner(MyMethod(alpha=10.0))`, `check_estimator(…)` and `check_metric(…)`. A broken
law shows the smallest counterexample as Python to paste, and which trait to drop if the promise was not meant. The
search is the same on every run. An option that takes a promise back says so in `promises()`, as ε ≠ 0 does for `ssd`.
A class adds laws of its own in an attribute `laws`, a tuple of `unlearnkit.testing.Law`; classes derived from it
inherit them.
"""

_BITES = """\
## Every law bites

For each law the tests hold a deliberately wrong method, estimator or metric that breaks this law and no other one of
its kind.

| kind | law | the wrong one that it alone rejects |
|---|---|---|
"""


def laws_page() -> str:
    """Write the page."""
    parts = [_HEAD]
    for kind, title, about in _KINDS:
        rows = "\n".join(_row(law) for law in LAWS[kind])
        parts.append(f"## {title}\n\n{about}\n\n| law | sentence | owed by | cases |\n|---|---|---|---|\n{rows}\n")
    parts.append(_BITES + "\n".join(_bites()) + "\n")
    return "\n".join(parts)


def _row(law: Law) -> str:
    owed = f"those that promise `{law.promise}`; else write `{law.waiver}`" if law.promise else "all"
    return _cells(f"`{law.name}`", law.sentence, owed, str(law.examples))


def _bites() -> Iterable[str]:
    for kind, title, _ in _KINDS:
        for law in LAWS[kind]:
            yield _cells(title.lower(), f"`{law.name}`", law.rejects)


def _cells(*cells: str) -> str:
    # A bare bar would end the cell.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
