"""The laws of every method, whatever it does to the weights."""

from contextlib import suppress
from functools import partial
from typing import Any, final

import attrs
import torch
from hypothesis import strategies as st

from unlearnkit import ElementwiseUnlearner, Need, Report, TrainingUnlearner, Unlearner, UnlearningInputs
from unlearnkit.testing.cases import LawCase, broken, law_cases
from unlearnkit.testing.law import CaseSkipped, holds, law, run_twice
from unlearnkit.testing.snapshot import Snapshot, same
from unlearnkit.testing.strategies import DTYPES, thresholds
from unlearnkit.utils.options import options_of

_DATA = {Need.FORGET_DATA: "forget_data", Need.RETAIN_DATA: "retain_data"}


@final
@attrs.frozen(kw_only=True, eq=False)
class Edit:
    """One call of `Unlearner.unlearn`, seen from outside; no report where it failed."""

    before: Snapshot
    after: Snapshot
    inputs: UnlearningInputs
    report: Report | None


def _tried(method: Unlearner, law_case: LawCase, **changed: Any) -> Edit:
    model = law_case.model()
    inputs, before, report = law_case.unlearning_inputs(model, **changed), Snapshot.take(model), None
    with suppress(Exception):
        report = method.unlearn(model, inputs)
    return Edit(before=before, after=Snapshot.take(model), inputs=inputs, report=report)


def edit_of(method: Unlearner, law_case: LawCase) -> tuple[Edit, Report]:
    """Let a method edit the model of a case, or skip the case."""
    edit = _tried(method, law_case)
    if edit.report is None:
        raise CaseSkipped
    return edit, edit.report


def cases_for(method: Unlearner) -> st.SearchStrategy[LawCase]:
    """Draw cases for a method: in half precision too, where it does not run the model."""
    dtypes = DTYPES if isinstance(method, ElementwiseUnlearner) else (torch.float32, torch.float64)
    return law_cases(dtypes=dtypes, around=thresholds(method))


def _unchanged(method: Unlearner, law_case: LawCase, part: str) -> None:
    edit, _ = edit_of(method, law_case)
    changed = edit.before.differences(edit.after, part)
    holds(not changed, f"changed: {', '.join(changed)}")


_law = partial(law, Unlearner, cases=cases_for, examples=20)


@_law(examples=30, rejects="indexes the second dimension of every weight, biases included")
def runs(method: Unlearner, law_case: LawCase) -> None:
    """unlearn() edits every model that the method does not refuse (UnsupportedModelError), without error."""
    model = law_case.model()
    method.unlearn(model, law_case.unlearning_inputs(model))


@_law(rejects="resets the running statistics of BatchNorm")
def buffers(method: Unlearner, law_case: LawCase) -> None:
    """Buffers keep their bits, unless the trait edits_buffers is set; the report names those that change."""
    edit, report = edit_of(method, law_case)
    changed = [n for n, b in edit.before.buffers.items() if not same(b, edit.after.buffers.get(n))]
    if not method.promises().edits_buffers:
        holds(not changed, f"changed: {', '.join(changed)}")
    reported = list(report.buffers_changed)
    holds(reported == changed, f"the report says that {reported} changed, but it was {changed}")


@_law(rejects="clears the gradients")
def grads(method: Unlearner, law_case: LawCase) -> None:
    """Every .grad is what it was."""
    _unchanged(method, law_case, "grads")


@_law(rejects="leaves the model in eval mode")
def modes(method: Unlearner, law_case: LawCase) -> None:
    """Every module is in the mode, train or eval, that it was in."""
    _unchanged(method, law_case, "modes")


@_law(rejects="draws a number from torch's global generator")
def random_state(method: Unlearner, law_case: LawCase) -> None:
    """The global random states of Python, numpy and torch are what they were."""
    _unchanged(method, law_case, "rng")


@_law(rejects="replaces the bias of the head by a copy of itself")
def structure(method: Unlearner, law_case: LawCase) -> None:
    """Every name still refers to the same object; tied weights stay tied."""
    _unchanged(method, law_case, "structure")


@_law(rejects="edits frozen parameters too")
def frozen(method: Unlearner, law_case: LawCase) -> None:
    """Parameters without requires_grad keep their bits, and stay without it."""
    edit, _ = edit_of(method, law_case)
    was, now = edit.before.weights(trainable=False), edit.after.weights(trainable=False)
    holds(list(was) == list(now), f"frozen before: {list(was)}, after: {list(now)}")
    changed = [name for name in was if not same(was[name], now[name])]
    holds(not changed, f"edited although frozen: {', '.join(changed)}")


@_law(rejects="zeroes the forget importance when it has used it")
def inputs(method: Unlearner, law_case: LawCase) -> None:
    """Importances and batches are left as they are."""
    edit, _ = edit_of(method, law_case)
    fresh = law_case.unlearning_inputs(law_case.model())
    for role in ("forget", "reference"):
        was, now = getattr(fresh, role).totals, getattr(edit.inputs, role).totals
        holds(same(dict(was), dict(now)), f"the totals of inputs.{role} were edited")
    for name in _DATA.values():
        holds(same(getattr(fresh, name), getattr(edit.inputs, name)), f"the batches of inputs.{name} were edited")


@_law(rejects="reports one changed weight more than there are")
def report(method: Unlearner, law_case: LawCase) -> None:
    """Report.tensors counts exactly the weights of each trainable parameter whose bits differ."""
    edit, report = edit_of(method, law_case)
    was, now = edit.before.weights(trainable=True), {name: p for name, (p, _) in edit.after.parameters.items()}
    real = {
        name: (p.numel(), sum(not same(a, b) for a, b in zip(p.reshape(-1), now[name].reshape(-1), strict=True)))
        for name, p in was.items()
        if name in now
    }
    reported = {t.name: (t.size, t.changed) for t in report.tensors}
    holds(reported == real, f"the report says (size, changed) = {reported}, but it was {real}")


def _faults(method: Unlearner) -> st.SearchStrategy[tuple[LawCase, str]]:
    faults = ["budget", *(name for need, name in _DATA.items() if need in method.requires())]
    return st.tuples(cases_for(method), st.sampled_from(faults))


@_law(cases=_faults, rejects="checks the budget after the edit and raises without undoing it")
def rolls_back(method: Unlearner, case: tuple[LawCase, str]) -> None:
    """After an exception everything is as it was: weights, buffers, gradients, modes, random state."""
    law_case, fault = case
    # A budget of 0 makes every edit an error after the fact; broken data are an error in its midst.
    change = {"max_fraction": 0.0} if fault == "budget" else {fault: broken(law_case.data(fault))}
    edit = _tried(method, law_case, **change)
    if edit.report is None:
        changed = edit.before.differences(edit.after)
        holds(not changed, f"unlearn() raised, and these differ: {', '.join(changed)}")


@_law(promise="deterministic", rejects="draws its noise from the global generator, not from UnlearningInputs.seed")
def deterministic(method: Unlearner, law_case: LawCase) -> None:
    """The same input gives the same bits on one CPU, whatever the global generators are at."""
    one, other = run_twice(lambda: _tried(method, law_case).after.weights(trainable=True))
    changed = [name for name in one if not same(one[name], other.get(name))]
    holds(not changed, f"two runs on the same input differ in {', '.join(changed)}")


# For methods with a fixed mode, the law "buffers" says the same.
@law(
    TrainingUnlearner,
    cases=cases_for,
    examples=20,
    applies=lambda method: any(option.name == "mode" for option in options_of(method)),
    rejects="switches the model to train mode in its loss",
)
def eval_mode(method: TrainingUnlearner, law_case: LawCase) -> None:
    """With mode="eval" it runs without error, and every buffer keeps its bits."""
    model = law_case.model()
    inputs, buffers = law_case.unlearning_inputs(model), Snapshot.take(model).buffers
    attrs.evolve(method, mode="eval").unlearn(model, inputs)
    changed = [name for name, b in Snapshot.take(model).buffers.items() if not same(b, buffers[name])]
    holds(not changed, f"changed: {', '.join(changed)}")
