"""The laws of elementwise methods: θ' = rule(θ, F_f, F_r)."""

import math
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any, cast

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import ElementwiseUnlearner, Need
from unlearnkit.testing.cases import LawCase, RuleInputs
from unlearnkit.testing.law import CaseSkipped, fail, holds, law
from unlearnkit.testing.laws.unlearner import cases_for, edit_of
from unlearnkit.testing.snapshot import same
from unlearnkit.testing.strategies import rule_inputs, thresholds, two_values


def _cases(**options: Any) -> Callable[[Any], st.SearchStrategy[RuleInputs]]:
    return lambda method: rule_inputs(around=thresholds(method), **options)


def _monotone_cases(method: ElementwiseUnlearner) -> st.SearchStrategy[RuleInputs]:
    """Draw two values of an option, and inputs around both, between them and around the other options."""

    def inputs(extra: tuple[str, Any, Any]) -> st.SearchStrategy[RuleInputs]:
        low, high = (float(value) for value in extra[1:])
        between = low + min(low or 1.0, (high - low) / 2)
        most = [x for x in (between, 1 / between, high) if math.isfinite(x)]
        return rule_inputs(around=(*most * 3, *thresholds(method, low, high)), extra=st.just(extra))

    return two_values(method, sorted(method.promises().monotone)).flatmap(inputs)


def _edited(method: ElementwiseUnlearner, case: RuleInputs) -> Tensor:
    """Edit, or skip the case where the method fails, which the law "runs" reports."""
    try:
        return case.edited(method)
    except Exception as error:
        raise CaseSkipped from error


def _ruled(method: ElementwiseUnlearner, case: RuleInputs, arguments: tuple[Tensor, ...]) -> Tensor:
    """Call rule() and cast to the dtype of θ, or skip the case where it fails, which the law "kind" reports."""
    try:
        return case.ready(method).rule(*arguments).to(case.theta.dtype)
    except Exception as error:
        raise CaseSkipped from error


def _all(right: Tensor, case: RuleInputs, **results: Tensor) -> None:
    """Require a condition of every element, or show the first one where it does not hold."""
    if bool(right.all()):
        return
    place = int((~right).reshape(-1).nonzero()[0, 0])
    named = {"theta": case.theta, "forget": case.forget, "reference": case.reference, **results}
    texts = [f"{name} = {t.reshape(-1)[place].item()!r}" for name, t in named.items()]
    fail(f"at element {place}: {', '.join(texts)}")


_law = partial(law, ElementwiseUnlearner, cases=_cases())


@_law(rejects="returns a tensor of one element where the weight is a scalar")
def kind(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """rule() returns a tensor of the same shape, dtype and device, for every shape, a scalar's too."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        moved = case.map(methodcaller("to", device))
        theta, forget, reference = moved.wide(method)
        edited = moved.ready(method).rule(theta, forget, reference)
        holds(isinstance(edited, Tensor), f"rule() returned {type(edited).__name__}")
        want, have = [(tuple(t.shape), t.dtype, t.device) for t in (theta, edited)]
        holds(want == have, f"expected {want}, saw {have}")


@_law(rejects="writes into the importances in a way that autograd's version counter does not see")
def pure(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """rule() leaves its arguments as they are."""
    arguments = case.wide(method)
    before = [t.clone() for t in arguments]
    _ruled(method, case, arguments)
    for name, was, now in zip(("theta", "forget", "reference"), before, arguments, strict=True):
        holds(same(was, now), f"{name} was {was.tolist()} before rule(), and {now.tolist()} after it")


@_law(rejects="divides ∞ by ∞ where an importance is so large that its square overflows")
def finite(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """Finite weights and importances give finite weights, also at the ends of the range of the dtype."""
    edited = _ruled(method, case, case.wide(method))
    _all(torch.isfinite(edited), case, edited=edited)


@_law(cases=_cases(extra=st.permutations(range(8))), rejects="never edits the first column of a matrix")
def permutation(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """Shuffling the weights with their importances shuffles the result."""
    order = torch.tensor([i for i in case.extra if i < case.theta.numel()])

    def shuffle(t: Tensor) -> Tensor:
        return t.reshape(-1)[order].reshape(t.shape)

    edited, shuffled = shuffle(_edited(method, case)), _edited(method, case.map(shuffle))
    seen = f"edit, then shuffle: {edited.tolist()}; shuffle, then edit: {shuffled.tolist()}"
    holds(same(edited, shuffled), seen)


@_law(cases=_cases(extra=st.integers(0, 7)), rejects="selects by the largest importance of the tensor it is given")
def partition(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """Editing the rows of a tensor in two parts gives the same bits as editing the whole."""
    whole = _edited(method, case)
    if not whole.dim() or whole.shape[0] < 2:
        return
    cut = 1 + case.extra % (whole.shape[0] - 1)
    ready = case.ready(method)
    try:
        parts = [ready.edit(*(t[rows] for t in case.arguments(method))) for rows in (slice(cut), slice(cut, None))]
    except Exception as error:  # noqa: BLE001 - the whole could be edited: a part must be, too
        fail(f"the whole can be edited, its rows before or from {cut} on cannot: {error}")
    holds(same(torch.cat(parts), whole), f"cut at row {cut}: {torch.cat(parts).tolist()}; whole: {whole.tolist()}")


@_law(
    cases=_cases(finite=False),
    promise="local",
    rejects="compares with ≥, so that dead weights (F_f = F_r = 0) are selected",
)
def locality(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """A weight with F_f = 0 keeps its bits, −0 and NaN included."""
    edited = _edited(method, case)
    kept = [same(was, now) for was, now in zip(case.theta.reshape(-1), edited.reshape(-1), strict=True)]
    _all((case.forget != 0) | torch.tensor(kept).reshape(case.theta.shape), case, edited=edited)


@_law(examples=200, promise="non_amplifying", rejects="dampens without the clamp min(…, 1)")
def no_amplification(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """|θ'| ≤ |θ|."""
    edited = _edited(method, case)
    _all(edited.abs() <= case.theta.abs(), case, edited=edited)


@_law(promise="sign_preserving", rejects="flips the sign of the selected weights")
def sign(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """θ' is 0 or has the sign of θ."""
    edited = _edited(method, case)
    _all((edited == 0) | (edited.sign() == case.theta.sign()), case, edited=edited)


@_law(promise="odd", rejects="edits positive weights only")
def odd(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """The edit of −θ is minus the edit of θ."""
    edited, mirrored = _edited(method, case), _edited(method, attrs.evolve(case, theta=-case.theta))
    _all(mirrored == -edited, case, of_theta=edited, of_minus_theta=mirrored)


@_law(
    cases=_monotone_cases,
    examples=200,
    promise="monotone",
    waiver="monotone={…} without this option",
    rejects="selects below the threshold instead of above it",
)
def monotone(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """Raising an option named in `monotone` makes no |θ'| smaller."""
    option, low, high = case.extra
    small, large = (_edited(attrs.evolve(cast("Any", method), **{option: value}), case) for value in (low, high))
    _all(~(large.abs() < small.abs()), case, **{f"edited at {option} = {low}": small, f"at {high}": large})


@_law(
    cases=_cases(moderate=True, extra=st.sampled_from((1, -1, 50, -50)) | st.integers(-50, 50)),
    promise="scale_free",
    rejects="adds 1e-8 to F_f in the quotient",
)
def scale_free(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """F_f and F_r times the same power of two give the same bits, away from under- and overflow."""
    factor = 2.0**case.extra
    scaled = attrs.evolve(case, forget=case.forget * factor, reference=case.reference * factor)
    one, other = _edited(method, case), _edited(method, scaled)
    holds(same(one, other), f"{one.tolist()}; importances times 2^{case.extra}: {other.tolist()}")


@_law(promise="idempotent", rejects="halves the selected weights")
def idempotent(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    """A second edit with the same importances changes no bit."""
    once = _edited(method, case)
    twice = attrs.evolve(case, theta=once).edited(method)
    holds(same(once, twice), f"once: {once.tolist()}; twice: {twice.tolist()}")


@law(ElementwiseUnlearner, cases=cases_for, examples=20, rejects="edits a tied weight once for each of its names")
def edited_once(method: ElementwiseUnlearner, law_case: LawCase) -> None:
    """unlearn() gives each trainable parameter, by name and tied ones once, what edit() gives."""
    edit, _ = edit_of(method, law_case)
    forget, reference = edit.inputs.forget, edit.inputs.reference
    assert forget is not None
    assert reference is not None
    needed = Need.REFERENCE_IMPORTANCE in method.requires()
    ready = method.prepare(forget, reference if needed else None)
    for name, theta in edit.before.weights(trainable=True).items():
        f, r = forget.mean()[name], reference.mean()[name]
        expected = ready.edit(theta, f, r if needed else torch.zeros_like(r))
        seen, _ = edit.after.parameters.get(name, (None, True))
        holds(same(expected, seen), f"{name}: edit() gives {expected.tolist()}, unlearn() gave {seen}")
