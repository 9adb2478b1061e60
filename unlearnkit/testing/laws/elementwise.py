"""The laws of methods that edit each weight by itself: θ' = rule(θ, F_f, F_r)."""

from collections.abc import Callable
from operator import methodcaller
from typing import Any, cast

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from unlearnkit import ElementwiseUnlearner
from unlearnkit.testing.cases import RuleInputs
from unlearnkit.testing.law import Law, holds
from unlearnkit.testing.snapshot import same
from unlearnkit.testing.strategies import rule_inputs, two_values


def _worst(wrong: Tensor, **named: Tensor | None) -> str:
    """Show the values at the first wrong element."""
    place = int(wrong.reshape(-1).nonzero()[0, 0])
    texts = [f"{name} = {t.reshape(-1)[place].item()!r}" for name, t in named.items() if t is not None]
    return f"at element {place}: " + ", ".join(texts)


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _kind(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    for device in _devices():
        moved = case.map(methodcaller("to", device))
        theta, forget, reference = moved.wide(method)
        edited = moved.ready(method).rule(theta, forget, reference)
        holds(isinstance(edited, Tensor), f"rule() returned {type(edited).__name__}")
        want, have = [(tuple(t.shape), t.dtype, t.device) for t in (theta, edited)]
        holds(want == have, f"expected {want}, saw {have}")


def _pure(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    arguments = case.wide(method)
    before = [t.clone() for t in arguments]
    try:
        case.ready(method).rule(*arguments)
    except Exception:  # noqa: BLE001 - the law "kind" reports it
        return
    for name, was, now in zip(("theta", "forget", "reference"), before, arguments, strict=True):
        holds(same(was, now), f"{name} was {was.tolist()} before rule(), and {now.tolist()} after it")


def _finite(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    theta, forget, reference = case.wide(method)
    try:
        edited = case.ready(method).rule(theta, forget, reference).to(case.theta.dtype)
    except Exception:  # noqa: BLE001 - the law "kind" reports it
        return
    wrong = ~torch.isfinite(edited)
    if bool(wrong.any()):
        holds(False, _worst(wrong, theta=theta, forget=forget, reference=reference, edited=edited))


def _permutation(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    order = torch.tensor([i for i in case.extra if i < case.theta.numel()])

    def shuffle(t: Tensor) -> Tensor:
        return t.reshape(-1)[order].reshape(t.shape)

    whole, shuffled = case.edited(method), case.map(shuffle).edited(method)
    if whole is not None and shuffled is not None:
        seen = f"edit, then shuffle: {shuffle(whole).tolist()}; shuffle, then edit: {shuffled.tolist()}"
        holds(same(shuffle(whole), shuffled), seen)


def _partition(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    whole = case.edited(method)
    if whole is None or not whole.dim() or whole.shape[0] < 2:
        return
    cut = 1 + case.extra % (whole.shape[0] - 1)
    ready = case.ready(method)
    try:
        parts = [ready.edit(*(t[rows] for t in case.arguments(method))) for rows in (slice(cut), slice(cut, None))]
    except Exception as error:  # noqa: BLE001 - the whole could be edited: a part must be, too
        holds(False, f"the whole can be edited, its rows before or from {cut} on cannot: {error}")
    holds(same(torch.cat(parts), whole), f"cut at row {cut}: {torch.cat(parts).tolist()}; whole: {whole.tolist()}")


def _pointwise(right: Callable[[Tensor, RuleInputs], Tensor]) -> Callable[[ElementwiseUnlearner, RuleInputs], None]:
    """Make the body of a law about θ and θ', element by element."""

    def body(method: ElementwiseUnlearner, case: RuleInputs) -> None:
        edited = case.edited(method)
        if edited is None:
            return
        wrong = ~right(edited, case)
        if bool(wrong.any()):
            named = {"theta": case.theta, "forget": case.forget, "reference": case.reference}
            holds(False, _worst(wrong, **named, edited=edited))

    return body


def _local(edited: Tensor, case: RuleInputs) -> Tensor:
    kept = [same(was, now) for was, now in zip(case.theta.reshape(-1), edited.reshape(-1), strict=True)]
    return (case.forget != 0) | torch.tensor(kept).reshape(case.theta.shape)


def _odd(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    edited = case.edited(method)
    mirrored = attrs.evolve(case, theta=-case.theta).edited(method)
    if edited is not None and mirrored is not None:
        wrong = mirrored != -edited
        if bool(wrong.any()):
            holds(False, _worst(wrong, theta=case.theta, of_theta=edited, of_minus_theta=mirrored))


def _monotone(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    option, low, high = case.extra
    small = case.edited(attrs.evolve(cast("Any", method), **{option: low}))
    large = case.edited(attrs.evolve(cast("Any", method), **{option: high}))
    if small is not None and large is not None:
        wrong = large.abs() < small.abs()
        if bool(wrong.any()):
            holds(False, f"{option} from {low} to {high}, " + _worst(wrong, theta=case.theta, low=small, high=large))


def _scale_free(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    factor = 2.0**case.extra
    scaled = attrs.evolve(case, forget=case.forget * factor, reference=case.reference * factor)
    one, other = case.edited(method), scaled.edited(method)
    if one is not None and other is not None:
        holds(same(one, other), f"{one.tolist()}; importances times 2^{case.extra}: {other.tolist()}")


def _idempotent(method: ElementwiseUnlearner, case: RuleInputs) -> None:
    once = case.edited(method)
    if once is not None:
        twice = attrs.evolve(case, theta=once).edited(method)
        holds(twice is not None and same(once, twice), f"once: {once.tolist()}; twice: {twice}")


def _cases(**options: Any) -> Callable[[Any], st.SearchStrategy[RuleInputs]]:
    return lambda _: rule_inputs(**options)


ELEMENTWISE_LAWS = (
    Law(
        name="kind",
        sentence="rule() returns a tensor of the same shape, dtype and device, for every shape, a scalar's too.",
        cases=_cases(),
        holds=_kind,
        rejects="returns a tensor of one element where the weight is a scalar",
    ),
    Law(
        name="pure",
        sentence="rule() leaves its arguments as they are.",
        cases=_cases(),
        holds=_pure,
        rejects="writes into the importances behind the back of autograd's version counter",
    ),
    Law(
        name="finite",
        sentence="Finite weights and importances give finite weights, also at the ends of the range of the dtype.",
        cases=_cases(),
        holds=_finite,
        rejects="divides ∞ by ∞ where an importance is so large that its square overflows",
    ),
    Law(
        name="permutation",
        sentence="Shuffling the weights with their importances shuffles the result.",
        cases=_cases(extra=st.permutations(range(8))),
        holds=_permutation,
        rejects="never edits the first column of a matrix",
    ),
    Law(
        name="partition",
        sentence="Editing the rows of a tensor in two parts gives the same bits as editing the whole.",
        cases=_cases(extra=st.integers(0, 7)),
        holds=_partition,
        rejects="selects by the largest importance of the tensor it is given",
    ),
    Law(
        name="locality",
        sentence="A weight with F_f = 0 keeps its bits, −0 and NaN included.",
        cases=_cases(finite=False),
        holds=_pointwise(_local),
        promise="local",
        rejects="compares with ≥, so that dead weights (F_f = F_r = 0) are selected",
    ),
    Law(
        name="no-amplification",
        sentence="|θ'| ≤ |θ|.",
        cases=_cases(),
        holds=_pointwise(lambda edited, case: edited.abs() <= case.theta.abs()),
        promise="non_amplifying",
        rejects="dampens without the clamp min(…, 1)",
    ),
    Law(
        name="sign",
        sentence="θ' is 0 or has the sign of θ.",
        cases=_cases(),
        holds=_pointwise(lambda edited, case: (edited == 0) | (edited.sign() == case.theta.sign())),
        promise="sign_preserving",
        rejects="flips the sign of the selected weights",
    ),
    Law(
        name="odd",
        sentence="The edit of −θ is minus the edit of θ.",
        cases=_cases(),
        holds=_odd,
        promise="odd",
        rejects="edits positive weights only",
    ),
    Law(
        name="monotone",
        sentence="Raising an option named in `monotone` makes no |θ'| smaller.",
        cases=lambda method: rule_inputs(extra=two_values(method, sorted(method.promises().monotone))),
        holds=_monotone,
        promise="monotone",
        waiver="monotone={…} without this option",
        rejects="selects below the threshold instead of above it",
    ),
    Law(
        name="scale-free",
        sentence="F_f and F_r times the same power of two give the same bits, away from under- and overflow.",
        cases=_cases(moderate=True, extra=st.integers(-20, 20)),
        holds=_scale_free,
        promise="scale_free",
        rejects="adds 1e-8 to F_f in the quotient",
    ),
    Law(
        name="idempotent",
        sentence="A second edit with the same importances changes no bit.",
        cases=_cases(),
        holds=_idempotent,
        promise="idempotent",
        rejects="halves the selected weights",
    ),
)
"""What a method owes that edits each weight by itself, besides what every unlearner owes."""
