"""The laws of every method, whatever it does to the weights."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

import attrs
import torch
from hypothesis import assume
from hypothesis import strategies as st

from unlearnkit import (
    ElementwiseUnlearner,
    Need,
    Report,
    TrainingUnlearner,
    Unlearner,
    UnlearningInputs,
    UnsupportedModelError,
)
from unlearnkit.testing.cases import Broken, LawCase, law_cases
from unlearnkit.testing.law import Law, holds
from unlearnkit.testing.snapshot import Snapshot, same
from unlearnkit.testing.strategies import DTYPES
from unlearnkit.utils.options import options_of
from unlearnkit.utils.rng import private_rng

_DATA = {Need.FORGET_DATA: "forget_data", Need.RETAIN_DATA: "retain_data"}


@final
@attrs.frozen(kw_only=True, eq=False)
class Edit:
    """One call of `Unlearner.unlearn`, seen from outside."""

    before: Snapshot
    after: Snapshot
    inputs: UnlearningInputs
    report: Report | None

    @classmethod
    def perform(cls, method: Unlearner, law_case: LawCase, *, must: bool = False, **changed: Any) -> "Edit":
        """Let a method edit the model of a case."""
        model = law_case.model()
        inputs, before, report = law_case.unlearning_inputs(model, **changed), Snapshot.take(model), None
        try:
            report = method.unlearn(model, inputs)
        except Exception:  # the law "runs" reports it, the other laws are about calls that succeed
            if must:
                raise
        return cls(before=before, after=Snapshot.take(model), inputs=inputs, report=report)


def cases_for(method: Unlearner) -> st.SearchStrategy[LawCase]:
    """Draw cases for a method: in half precision too, where it does not run the model."""
    dtypes = DTYPES if isinstance(method, ElementwiseUnlearner) else (torch.float32, torch.float64)
    return law_cases(dtypes=dtypes)


def _runs(method: Unlearner, law_case: LawCase) -> None:
    try:
        Edit.perform(method, law_case, must=True)
    except UnsupportedModelError:
        assume(False)


def _untouched(*parts: str) -> Callable[[Unlearner, LawCase], None]:
    """Make the body of a law that parts of the model stay as they were."""

    def body(method: Unlearner, law_case: LawCase) -> None:
        edit = Edit.perform(method, law_case)
        changed = edit.before.differences(edit.after, *parts) if edit.report else []
        holds(not changed, f"changed: {', '.join(changed)}")

    return body


def _buffers(method: Unlearner, law_case: LawCase) -> None:
    edit = Edit.perform(method, law_case)
    if edit.report is None:
        return
    changed = [n for n, b in edit.before.buffers.items() if not same(b, edit.after.buffers.get(n))]
    if not method.promises().edits_buffers:
        holds(not changed, f"changed: {', '.join(changed)}")
    reported = list(edit.report.buffers_changed)
    holds(reported == changed, f"the report says that {reported} changed, but it was {changed}")


def _frozen(method: Unlearner, law_case: LawCase) -> None:
    edit = Edit.perform(method, law_case)
    was, now = edit.before.weights(trainable=False), edit.after.weights(trainable=False)
    if edit.report:
        holds(list(was) == list(now), f"frozen before: {list(was)}, after: {list(now)}")
        changed = [name for name in was if not same(was[name], now[name])]
        holds(not changed, f"edited although frozen: {', '.join(changed)}")


def _inputs(method: Unlearner, law_case: LawCase) -> None:
    edit = Edit.perform(method, law_case)
    if edit.report is None:
        return
    fresh = law_case.unlearning_inputs(law_case.model())
    for role in ("forget", "reference"):
        was, now = getattr(fresh, role).totals, getattr(edit.inputs, role).totals
        holds(same(dict(was), dict(now)), f"the totals of inputs.{role} were edited")
    for name in _DATA.values():
        holds(same(getattr(fresh, name), getattr(edit.inputs, name)), f"the batches of inputs.{name} were edited")


def _report(method: Unlearner, law_case: LawCase) -> None:
    edit = Edit.perform(method, law_case)
    if edit.report is None:
        return
    was, now = edit.before.weights(trainable=True), {name: p for name, (p, _) in edit.after.parameters.items()}
    real = {
        name: (p.numel(), sum(not same(a, b) for a, b in zip(p.reshape(-1), now[name].reshape(-1), strict=True)))
        for name, p in was.items()
        if name in now
    }
    reported = {t.name: (t.size, t.changed) for t in edit.report.tensors}
    holds(reported == real, f"the report says (size, changed) = {reported}, but it was {real}")


def _faults(method: Unlearner) -> st.SearchStrategy[tuple[LawCase, str]]:
    faults = ["budget", *(name for need, name in _DATA.items() if need in method.needs)]
    return st.tuples(cases_for(method), st.sampled_from(faults))


def _rolls_back(method: Unlearner, case: tuple[LawCase, str]) -> None:
    law_case, fault = case
    # A budget of 0 makes every edit an error after the fact; broken data are an error in its midst.
    change = {"max_fraction": 0.0} if fault == "budget" else {fault: Broken(law_case.data(fault))}
    edit = Edit.perform(method, law_case, **change)
    if edit.report is None:
        changed = edit.before.differences(edit.after)
        holds(not changed, f"unlearn() raised, and these differ: {', '.join(changed)}")


def _deterministic(method: Unlearner, law_case: LawCase) -> None:
    runs = []
    for seed in (1, 2):  # the global generators are no input: UnlearningInputs.seed is
        with private_rng(seed=seed):
            runs.append(Edit.perform(method, law_case).after.weights(trainable=True))
    changed = [name for name in runs[0] if not same(runs[0][name], runs[1].get(name))]
    holds(not changed, f"two runs on the same input differ in {', '.join(changed)}")


def _edited_once(method: Unlearner, law_case: LawCase) -> None:
    assert isinstance(method, ElementwiseUnlearner)
    edit = Edit.perform(method, law_case)
    if edit.report is None:
        return
    forget, reference = edit.inputs.forget, edit.inputs.reference
    assert forget is not None
    assert reference is not None
    needed = Need.REFERENCE_IMPORTANCE in method.needs
    ready = method.prepare(forget, reference)
    for name, theta in edit.before.weights(trainable=True).items():
        f, r = forget.mean()[name], reference.mean()[name]
        expected = ready.edit(theta, f, r if needed else torch.zeros_like(r))
        seen, _ = edit.after.parameters.get(name, (None, True))
        holds(same(expected, seen), f"{name}: edit() gives {expected.tolist()}, unlearn() gave {seen}")


def _runs_in_eval_mode(method: TrainingUnlearner, law_case: LawCase) -> None:
    model = law_case.model()
    inputs, buffers = law_case.unlearning_inputs(model), Snapshot.take(model).buffers
    try:
        attrs.evolve(method, mode="eval").unlearn(model, inputs)
    except UnsupportedModelError:
        assume(False)
    changed = [name for name, b in Snapshot.take(model).buffers.items() if not same(b, buffers[name])]
    holds(not changed, f"changed: {', '.join(changed)}")


_law = partial(Law, cases=cases_for, examples=20)

UNLEARNER_LAWS = (
    _law(
        name="runs",
        sentence="unlearn() edits every model that the method does not refuse (UnsupportedModelError), without error.",
        holds=_runs,
        examples=30,
        rejects="indexes the second dimension of every weight, biases included",
    ),
    _law(
        name="buffers",
        sentence="Buffers keep their bits, unless the trait edits_buffers is set; the report names those that change.",
        holds=_buffers,
        rejects="resets the running statistics of BatchNorm",
    ),
    _law(
        name="grads",
        sentence="Every .grad is what it was.",
        holds=_untouched("grads"),
        rejects="clears the gradients",
    ),
    _law(
        name="modes",
        sentence="Every module is in the mode, train or eval, that it was in.",
        holds=_untouched("modes"),
        rejects="leaves the model in eval mode",
    ),
    _law(
        name="random-state",
        sentence="The global random states of Python, numpy and torch are what they were.",
        holds=_untouched("rng"),
        rejects="draws a number from torch's global generator",
    ),
    _law(
        name="structure",
        sentence="The same objects stand under the same names; tied weights stay tied.",
        holds=_untouched("structure"),
        rejects="replaces the bias of the head by a copy of itself",
    ),
    _law(
        name="frozen",
        sentence="Parameters without requires_grad keep their bits, and stay without it.",
        holds=_frozen,
        rejects="edits frozen parameters too",
    ),
    _law(
        name="inputs",
        sentence="Importances and batches are left as they are.",
        holds=_inputs,
        rejects="zeroes the forget importance when it has used it",
    ),
    _law(
        name="report",
        sentence="Report.tensors counts exactly the weights of each trainable parameter whose bits differ.",
        holds=_report,
        rejects="reports one changed weight more than there are",
    ),
    _law(
        name="rolls-back",
        sentence="After an exception everything is as it was: weights, buffers, gradients, modes, random state.",
        cases=_faults,
        holds=_rolls_back,
        rejects="looks at the budget after the edit and raises without undoing it",
    ),
    _law(
        name="deterministic",
        sentence="The same input gives the same bits on one CPU, whatever the global generators are at.",
        holds=_deterministic,
        promise="deterministic",
        rejects="draws its noise from the global generator instead of from UnlearningInputs.seed",
    ),
)
"""What every method owes."""

EDITED_ONCE = _law(
    name="edited-once",
    sentence="unlearn() gives each trainable parameter, by name and tied ones once, what edit() gives.",
    holds=_edited_once,
    rejects="edits a tied weight once for each of its names",
)
"""What an elementwise method owes on a whole model."""

TRAINING_LAWS = (
    _law(
        name="eval-mode",
        sentence='With mode="eval" it runs without error, and every buffer keeps its bits.',
        holds=_runs_in_eval_mode,
        applies=lambda method: any(option.name == "mode" for option in options_of(method)),
        rejects="switches the model to train mode in its loss",
    ),
)
"""What a method that trains owes besides; those with a fixed mode owe it by the law "buffers"."""
