"""Probes a few samples before the first batch: records the calls of the forward pass, and checks the totals."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, take
from unlearnkit.importance.fisher.engine.call_plan import (
    Action,
    CallPlan,
    Step,
    UnprovenError,
    recognise,
    results,
    touched_rows,
)
from unlearnkit.importance.fisher.engine.fallback_rules import AnyFunction, Rerun, SeveralResults, expansion
from unlearnkit.importance.fisher.engine.interceptor import (
    Gradients,
    Guide,
    Interceptor,
    Seen,
    Sink,
    enterable,
    in_place,
)
from unlearnkit.importance.fisher.engine.rule import Call, Rule, rule_for
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import buffers

_T = TypeVar("_T")
_PROBED = (3, 2)  # samples: a second size, because another dimension may be equal to the first by chance
_EXACT = 1 << 14  # elements up to which a picture is the tensor itself
_WIDTH = 64  # elements that become one
_AT_A_TIME = 1 << 18  # elements: what is made on the way is small
# How far totals of a few samples may be from those of one sample at a time, relative to their sum; what is wrong in
# structure is wrong by a factor, and what is rounding is far below. Second: gradients below this share of the largest
# are rounding errors themselves (the bias of attention's keys, a bias before a norm), squared.
_TOLERANCES = {
    torch.float64: (1e-6, 1e-22),
    torch.float32: (5e-3, 1e-9),
    torch.bfloat16: (0.3, 1e-4),
    torch.float16: (0.2, 1e-5),
}
# How far a sample's loss in a whole batch may be from its loss alone: relative, and in nats.
_SAME_LOSS = {
    torch.float64: (1e-6, 1e-9),
    torch.float32: (1e-2, 1e-4),
    torch.bfloat16: (0.3, 0.3),
    torch.float16: (0.3, 0.1),
}


@final
class Discovery(Guide):
    """Records what happens to each call, and which rows get a gradient from each sample's loss.

    A call is claimed when it mixes parameters with data. Tensors are data unless they are parameters, constants, or
    were made of these alone: whatever is not known counts as data, which can only cost speed.
    """

    def __init__(self, samples: int, constants: Iterable[Tensor]) -> None:
        self._samples = samples
        self._constants: dict[int, Tensor] = {id(t): t for t in constants}
        self._fixed = frozenset(self._constants)
        self._steps: list[Step] = []
        self._touched: dict[int, list[list[Tensor | None]]] = {}
        self._saved: dict[int, tuple[tuple[int, ...], ...]] = {}
        self.sample = 0
        self.precisions: set[torch.dtype] = set()

    def plan(self, precision: torch.dtype) -> CallPlan:
        """Return the steps, each claim with its layout."""
        steps = [self._settled(i, step) for i, step in enumerate(self._steps)]
        slow = dict.fromkeys(step.describe() for step in steps if isinstance(step.rule, Rerun))
        return CallPlan(steps, precision=precision, samples=self._samples, slow=tuple(slow))

    def compare(self, plan: CallPlan) -> None:
        """Compare the rows that these samples' losses reach with the layouts of a plan, if the calls match."""
        if [(s.function, s.names) for s in self._steps] != [(s.function, s.names) for s in plan.steps]:
            return
        for index, (mine, known) in enumerate(zip(self._steps, plan.steps, strict=True)):
            for shape, layout, seen in zip(mine.shapes, known.layouts, self._touched.get(index, ()), strict=False):
                fits = layout is not None and shape[: len(head := layout.length(self._samples))] == head
                if layout is not None and fits and not layout.agrees(_masks(shape, seen)):
                    raise UnprovenError(f"{mine.describe()}: its rows belong to other samples than they did")

    def step(self, seen: Seen) -> Step | None:
        tracked = {id(t) for t in seen.tracked}
        mixed = any(id(t) not in tracked and id(t) not in self._constants for t in seen.tensors)
        step = self._mixed(seen) if mixed else self._alone(seen)
        if step is not None:
            self._steps.append(step)
        return step

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        found = results(y)
        if not found:
            raise UnprovenError(f"{step.describe()}: it returns a {type(y).__name__} without floating tensors")
        index = len(self._steps) - 1
        self._steps[index] = attrs.evolve(step, shapes=tuple(tuple(t.shape) for t in found))
        self._saved[index] = tuple(tuple(t.shape) for t in call.saved)
        touched: list[list[Tensor | None]] = [[None] * self._samples for _ in found]
        self._touched[index] = touched
        self.precisions.update(t.dtype for t in found)

        def watch(gradients: Gradients, saved: tuple[Tensor, ...]) -> None:
            del saved
            for mine, g in zip(touched, gradients, strict=True):
                if g is not None:
                    rows, before = touched_rows(g), mine[self.sample]
                    mine[self.sample] = rows if before is None else before | rows

        return watch

    def passed(self, function: Callable[..., Any], tensors: list[Tensor], result: Any) -> None:
        if all(id(t) in self._constants for t in tensors):
            self._remember(result)
        elif in_place(function) and tensors and id(tensors[0]) not in self._fixed:
            self._constants.pop(id(tensors[0]), None)

    def _remember(self, result: Any) -> None:
        for t in result if isinstance(result, tuple | list) else (result,):
            # A state that starts at zero for every sample has one row per sample, as data has.
            if isinstance(t, Tensor) and not (t.dim() and t.shape[0] == self._samples):
                self._constants[id(t)] = t

    def _mixed(self, seen: Seen) -> Step | None:
        rule = rule_for(seen.function)
        if rule is not None and _covers(rule, seen):
            return _step(Action.CLAIM, seen, rule)
        if enterable(seen.function) and rule is None:
            return _step(Action.ENTER, seen)
        with torch.no_grad():
            result = seen.run() if not in_place(seen.function) else None
        if result is None:
            raise UnprovenError(f"{_step(Action.CLAIM, seen).describe()}: no rule covers it")
        if not results(result) or any(t is held for t in results(result) for held in seen.tensors):
            return None
        if not isinstance(result, Tensor):
            return _step(Action.CLAIM, seen, SeveralResults(seen, self._samples))
        return _step(Action.CLAIM, seen, AnyFunction(seen, result.shape[0] if result.dim() else 0))

    def _alone(self, seen: Seen) -> Step | None:
        result = seen.run()
        rule = expansion(seen.function, seen.tracked[0], result, self._samples) if len(seen.tracked) == 1 else None
        if rule is not None:
            return _step(Action.CLAIM, seen, rule)
        parts = result if isinstance(result, tuple | list) else (result,)
        if any(isinstance(t, Tensor) and t.requires_grad for t in parts):
            return _step(Action.DERIVE, seen)
        self._remember(result)
        return None

    def _settled(self, index: int, step: Step) -> Step:
        if step.action is not Action.CLAIM:
            return step
        assert step.rule is not None, "a claim has a rule"
        layouts = []
        for shape, seen in zip(step.shapes, self._touched[index], strict=True):
            touched = _masks(shape, seen)
            layouts.append(recognise(shape, touched, free_rows=step.rule.free_rows))
            if layouts[-1] is None and any(bool(t.any()) for t in touched):
                raise UnprovenError(f"{step.describe()}: which of its rows belong to which sample cannot be told")
        step = attrs.evolve(step, layouts=tuple(layouts))
        leading = step.inputs.length(self._samples) if step.inputs is not None else ()
        if any(shape[: len(leading)] != leading for shape in self._saved[index]):
            raise UnprovenError(f"{step.describe()}: its input and its output have their samples in different places")
        return step


def _masks(shape: tuple[int, ...], seen: list[Tensor | None]) -> list[Tensor]:
    return [torch.zeros(shape[:2], dtype=torch.bool) if t is None else t.cpu() for t in seen]


def _covers(rule: Rule, seen: Seen) -> bool:
    call = rule.bind(*seen.args, **seen.kwargs)
    if call is None:
        return False
    held = {id(w) for w in call.weights.values() if w is not None}
    return all(id(t) in held for t in seen.tracked)


def _step(action: Action, seen: Seen, rule: Rule | None = None) -> Step:
    return Step(action=action, function=seen.function, names=seen.names, rule=rule)


def first_proof(batch: Any, attempt: Callable[[Any], _T]) -> _T:
    """Attempt something with a few samples of a batch, and with fewer when it cannot be proven."""
    reason: UnprovenError | None = None
    for samples in (n for n in _PROBED if n <= batch_size(batch)):
        try:
            return attempt(take(batch, slice(0, samples)))
        except UnprovenError as error:
            reason = reason or error
    assert reason is not None, "a batch of one sample is not probed"
    raise reason


def probe(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor]) -> CallPlan:
    """Run one forward pass over a few samples, and one backward pass for each sample's loss alone."""
    guide = _watched(model, objective, batch, named)
    return guide.plan(_coarsest(guide.precisions | {p.dtype for p in named.values()}))


def probe_again(
    model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor], plan: CallPlan
) -> None:
    """Compare a plan with what the losses of other samples touch."""
    _watched(model, objective, batch, named).compare(plan)


def _watched(model: nn.Module, objective: Objective, batch: Any, named: Mapping[str, Tensor]) -> Discovery:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    guide = Discovery(batch_size(batch), [*buffers(model).values(), *frozen])
    interceptor = Interceptor(named, guide)
    losses = interceptor.forward(model, objective, batch)
    for sample in range(len(losses)):
        guide.sample = sample
        interceptor.backward(losses[sample], keep=True)
    return guide


def _coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in dtypes:
            return dtype
    if dtypes != {torch.float64}:
        raise UnprovenError(f"expected parameters of a known floating dtype, saw {sorted(map(str, dtypes))}")
    return torch.float64


@final
class Comparison:
    """Compares the engine's totals of the probe with those of one sample at a time, storing neither.

    Of parameters that are not small only pictures are compared, in which 64 neighbours are one number; see `projected`.
    """

    def __init__(self, totals: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        self._rest: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._numels: dict[str, int] = {}
        for name, total in totals.items():
            self.expect(name, total)

    def expect(self, name: str, total: Tensor) -> None:
        """Add the engine's total of one parameter, or a part of it."""
        picture = projected(total)
        if name not in self._rest:
            self._rest[name], self._seen[name] = torch.zeros_like(picture), torch.zeros_like(picture)
            self._sums[name], self._numels[name] = total.new_zeros(()), total.numel()
        self._rest[name].add_(picture)

    def expects(self, name: str) -> bool:
        return name in self._rest

    def receive(self, name: str, gradient: Tensor) -> None:
        """Subtract the square of one sample's gradient, shape (1, *shape)."""
        g = gradient[0].to(self._rest[name].dtype)
        self._take(name, projected(g, square=True), torch.linalg.vector_norm(g).square())

    def receive_squares(self, name: str, squares: Tensor) -> None:
        """Subtract the squares of some samples' gradients."""
        self._take(name, projected(squares), squares.sum())

    def _take(self, name: str, picture: Tensor, total: Tensor) -> None:
        self._rest[name].sub_(picture)
        self._seen[name].add_(picture)
        self._sums[name].add_(total)

    def verdict(
        self, precision: torch.dtype, *, together: Callable[[Tensor], Tensor] = lambda numbers: numbers
    ) -> None:
        """Raise `UnprovenError` where the totals differ by more than rounding."""
        relative, share = _TOLERANCES[precision]
        device = next((total.device for total in self._sums.values()), None)
        columns = torch.tensor([self._row(name) for name in self._rest], dtype=torch.float64, device=device)
        rows = dict(zip(self._rest, together(columns).tolist(), strict=True))
        means = [total / numel for total, numel, _, _ in rows.values() if numel]
        largest = max((mean for mean in means if math.isfinite(mean)), default=0.0)
        for name, (total, numel, size, difference) in rows.items():
            if not numel or not math.isfinite(total):
                continue
            floor = share * largest * numel * (size / total if total else 1.0)
            if not difference <= relative * size + floor:
                raise UnprovenError(
                    f"{name}: the totals of {difference / max(size, 1e-300):.2g} relative difference to those of "
                    "one sample at a time"
                )

    def _row(self, name: str) -> tuple[float, float, float, float]:
        """Sum of squares, element count, size of the projection, and its difference."""
        size, left = (float(t[name].abs().sum()) for t in (self._seen, self._rest))
        return float(self._sums[name]), float(self._numels[name]), size, left


def check_alone(losses: Tensor, alone: Tensor, precision: torch.dtype) -> None:
    """Compare the losses of some samples within a whole batch with their losses alone."""
    relative, nats = _SAME_LOSS[precision]
    seen, expected = losses.detach()[: len(alone)].double(), alone.double()
    apart = (seen - expected).abs() > relative * expected.abs() + nats
    if bool(apart.any()):
        raise UnprovenError("the losses, which are others within a batch than alone")


def projected(t: Tensor, *, square: bool = False) -> Tensor:
    """Add neighbours up with fixed random weights of either sign, 64 at a time; small tensors stay as they are.

    That of a sum is the sum of those of its terms. Two tensors that differ in one or in all places have different
    pictures, except by a chance that many neighbourhoods make negligible.
    """
    if t.numel() <= _EXACT:
        return t.reshape(-1).square() if square else t.reshape(-1).clone()
    weights = _weights(t.dtype, t.device)
    return torch.cat([_fold(part, weights, square=square) for part in _parts(t)])


def _parts(t: Tensor) -> Iterator[Tensor]:
    """Cut a tensor into parts of whole neighbourhoods without copying all of it."""
    if t.is_contiguous():
        t = t.view(-1)
    step = max(1, _AT_A_TIME // (t.numel() // len(t)) // _WIDTH) * _WIDTH
    return (t[at : at + step].reshape(-1) for at in range(0, len(t), step))


def _fold(flat: Tensor, weights: Tensor, *, square: bool) -> Tensor:
    whole = len(flat) // _WIDTH * _WIDTH
    body, rest = (part.square() if square else part for part in (flat[:whole], flat[whole:]))
    found = body.view(-1, _WIDTH) @ weights
    return torch.cat([found, (rest @ weights[: len(rest)]).reshape(1)]) if len(rest) else found


@cache
def _weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sizes = 0.5 + torch.rand(_WIDTH, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, (_WIDTH,), generator=generator, dtype=torch.float64) * 2 - 1
    return (sizes * signs).to(device, dtype)
