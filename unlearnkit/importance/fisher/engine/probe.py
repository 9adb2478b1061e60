"""Records the calls of a forward pass, and which rows of each belong to which sample."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, take, tensors
from unlearnkit.importance.fisher.engine.accumulate import Accumulation
from unlearnkit.importance.fisher.engine.call_plan import (
    Action,
    CallPlan,
    Layout,
    Order,
    Rows,
    Scattered,
    Step,
    UnprovenError,
    ZeroGradientsError,
    coarsest,
    recognise,
    results,
    shared_names,
)
from unlearnkit.importance.fisher.engine.fallback_rules import AnyFunction, Rerun, SeveralResults, expansion
from unlearnkit.importance.fisher.engine.interceptor import (
    Gradients,
    Guide,
    Interceptor,
    Seen,
    Sink,
    edits,
    enterable,
    in_place,
    parameters_in_graph,
)
from unlearnkit.importance.fisher.engine.row_owners import (
    UNKNOWN,
    DataRows,
    WeakTensorSet,
    coefficients,
    exponents,
    owners_of,
    row_maxima,
)
from unlearnkit.importance.fisher.engine.rule import Call, Rule, rule_for
from unlearnkit.models.objective import HALF, Objective
from unlearnkit.models.parameters import buffers

_T = TypeVar("_T")
_PROBED = (2, 3)  # samples: a second size, because another dimension may be equal to the first by chance
_AS = frozenset({"to", "type_as", "view_as", "reshape_as"})  # take no more than a shape or dtype from other tensors


@final
class Discovery(Guide):
    """Records what happens to each call, and derives which rows belong to which sample.

    A call is claimed when it mixes parameters with data. Tensors are data unless they are parameters, constants, or
    were made of these alone: what is not known counts as data, which can only cost speed. An index of unknown origin,
    such as one that a function keeps, does not, unless it has one row per sample. With a plan the calls are those of
    the plan, and only the rows are derived.
    """

    def __init__(
        self, samples: int, constants: Iterable[Tensor], batch: Iterable[Tensor], plan: CallPlan | None = None
    ) -> None:
        self.samples, self._plan = samples, plan
        self.data_rows = samples if plan is None else 0
        self._made_of_data = WeakTensorSet(batch)
        self._constants: dict[int, Tensor] = {id(t): t for t in constants if t not in self._made_of_data}
        self._fixed = frozenset(self._constants)
        self._per_sample = WeakTensorSet()  # made of constants, with a row for each sample
        self._without_data = False
        self.steps: list[Step] = []
        self.accumulation: Accumulation | None = None
        """Gets every call whose gradients have come, when its rows are known."""
        self.scaling = False
        """Whether the losses are multiplied by `coefficients`."""
        self.problem: UnprovenError | None = None
        """Why the rows of a call are not known."""
        self.digits = 0
        """Number of backward passes with multiplied losses."""
        self.precision = torch.float32
        """The coarsest dtype of weights and results, known after the forward pass."""
        self._data_rows = DataRows()
        self._dynamic = False
        self.precisions: set[torch.dtype] = set()

    def plan(self) -> CallPlan:
        return CallPlan(steps=tuple(self.steps), precision=self.precision, dynamic=self._dynamic)

    def step(self, seen: Seen) -> Step | None:
        if self._plan is not None:
            step = self._plan.at(len(self.steps), seen.function, seen.names)
        else:
            tracked = {id(t) for t in seen.tracked}
            given = seen.tensors[:1] if getattr(seen.function, "__name__", "") in _AS else seen.tensors
            mixed = any(id(t) not in tracked and self._is_data(t) for t in given)
            self._without_data = not mixed
            step = self._mixed(seen) if mixed else self._alone(seen)
        if step is not None:
            self._dynamic |= step.action is not Action.DERIVE and any(t in self._data_rows for t in seen.tensors)
            self.steps.append(step)
        return step

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        found = results(y)
        if not found:
            raise UnprovenError(f"{step.describe()}: it returns a {type(y).__name__} without floating tensors")
        index, unknown = len(self.steps) - 1, (None,) * len(found)
        shapes = tuple(tuple(t.shape) for t in found)
        self.steps[index] = attrs.evolve(step, shapes=shapes, layouts=unknown, samples=self.samples)
        self.precisions.update(t.dtype for t in found)
        scaled: list[list[Tensor | None]] = []
        rows = 2 if step.rule is not None and step.rule.free_rows else 1
        accumulation = self.accumulation
        labels, bare = accumulation.labels(call) if accumulation is not None else {}, call.holding(())

        def watch(gradients: Gradients, saved: tuple[Tensor, ...]) -> None:
            if self.scaling:
                scaled.append([None if g is None else row_maxima(g, dims=rows) for g in gradients])
                return
            try:
                settled = self._settled(self.steps[index], gradients, scaled, saved)
            except UnprovenError as unproven:  # FSDP has to see the end of the backward pass
                self.problem = self.problem or unproven
                return
            self.steps[index] = settled
            if accumulation is not None and self.problem is None:
                accumulation.receive(settled, bare.holding(saved), gradients, labels)

        return watch

    def passed(self, function: Callable[..., Any], args: tuple[Any, ...], given: list[Tensor], result: Any) -> None:
        if not any(self._is_data(t) and t not in self._per_sample for t in given):
            self._remember(result)
            return
        changed = [result, given[0]] if in_place(function) and given else [result]
        if len(changed) > 1 and id(given[0]) not in self._fixed:
            self._constants.pop(id(given[0]), None)
            self._per_sample.discard(given[0])
        self._made_of_data.update(tensors(changed))
        if self._data_rows.watch(function, args, given, self._constant):
            self._data_rows.add(changed)
        else:
            self._follow(given, changed)

    def returned(self, tensors: list[Tensor], result: Any) -> None:
        if self._without_data:
            self._remember(result)
            self._without_data = False
        self._follow(tensors, result)

    def _follow(self, tensors: list[Tensor], result: Any) -> None:
        if any(t in self._data_rows for t in tensors):
            self._data_rows.add(result)

    def _constant(self, t: Tensor) -> bool:
        return id(t) in self._constants

    def _is_data(self, t: Tensor) -> bool:
        if self._constant(t) or t.is_floating_point() or t.is_complex():
            return not self._constant(t)
        return t.dim() > 0 and (t.shape[0] == self.samples or t in self._made_of_data)

    def _remember(self, result: Any) -> None:
        for t in result if isinstance(result, tuple | list) else (result,):
            if not isinstance(t, Tensor) or t.requires_grad:
                continue
            # A state that starts at zero for every sample has one row per sample, as data has.
            if t.dim() and t.shape[0] == self.samples:
                self._per_sample.update([t])
            else:
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
        if not isinstance(result, Tensor) or (result.dim() > 1 and result.shape[1] == self.samples != result.shape[0]):
            return _step(Action.CLAIM, seen, SeveralResults(seen, self.samples))
        return _step(Action.CLAIM, seen, AnyFunction(seen, result.shape[0] if result.dim() else 0))

    def _alone(self, seen: Seen) -> Step | None:
        if edits(seen.function, seen.args, seen.kwargs):
            return _step(Action.DERIVE, seen)
        result = seen.run()
        rule = expansion(seen.function, seen.tracked[0], result, self.samples) if len(seen.tracked) == 1 else None
        if rule is not None:
            return _step(Action.CLAIM, seen, rule)
        parts = result if isinstance(result, tuple | list) else (result,)
        if any(isinstance(t, Tensor) and t.requires_grad for t in parts):
            return _step(Action.DERIVE, seen)
        return None

    def _settled(
        self, step: Step, gradients: Gradients, scaled: list[list[Tensor | None]], saved: tuple[Tensor, ...]
    ) -> Step:
        """Add the layouts of a call's results, or raise where samples mix."""
        assert step.rule is not None, "a claim has a rule"
        layouts = [
            None if g is None else self._rows(step, g, [one[place] for one in scaled])
            for place, g in enumerate(gradients)
        ]
        if len(layouts) > 1 and any(isinstance(layout, Scattered) for layout in layouts):
            raise UnprovenError(f"{step.describe()}: which of its rows belong to which sample cannot be told")
        found = attrs.evolve(step, layouts=tuple(layouts))
        leading = found.inputs.length(self.samples) if found.inputs is not None else ()
        if any(tuple(t.shape[: len(leading)]) != leading for t in saved):
            raise UnprovenError(f"{step.describe()}: its input and its output have their samples in different places")
        return found

    def _rows(self, step: Step, g: Tensor, scaled: list[Tensor | None]) -> Rows | None:
        assert step.rule is not None, "a claim has a rule"
        if not g.dim():
            raise UnprovenError(f"{step.describe()}: its result has no dimension for the samples")
        plain = row_maxima(g, dims=2 if step.rule.free_rows else 1)
        if not bool(plain.any()):
            return None
        if self.samples == 1:
            return Layout(order=Order.MAJOR, rows=len(plain))
        if len(scaled) != self.digits or any(one is None for one in scaled):
            raise UnprovenError(f"{step.describe()}: a gradient that comes and goes")
        try:
            owners = owners_of(plain, [one for one in scaled if one is not None], self.samples, self.precision)
            layout = recognise(owners, self.samples, free_rows=step.rule.free_rows)
            if layout is not None:
                return layout
            first = owners.flatten(1).amax(1) if owners.dim() > 1 else owners
            if owners.dim() > 1 and bool(((owners >= 0) & (owners != first.unsqueeze(1))).any()):
                raise UnprovenError("which of its rows belong to which sample cannot be told")
            if bool((owners == UNKNOWN).any()):
                raise UnprovenError("gradients too small to tell which of its rows belong to which sample")
            self._dynamic = True
            return Scattered(first.to(g.device), self.samples)
        except UnprovenError as unproven:
            raise UnprovenError(f"{step.describe()}: {unproven}") from None


def _covers(rule: Rule, seen: Seen) -> bool:
    call = rule.bind(*seen.args, **seen.kwargs)
    if call is None:
        return False
    held = {id(w) for w in call.weights.values() if w is not None}
    return all(id(t) in held for t in seen.tracked)


def _step(action: Action, seen: Seen, rule: Rule | None = None) -> Step:
    return Step(action=action, function=seen.function, names=seen.names, rule=rule)


def first_proof(batch: Any, attempt: Callable[[Any], _T]) -> _T:
    """Attempt something with two samples of a batch, and with three when it cannot be proven."""
    reason: UnprovenError | ZeroGradientsError | None = None
    for samples in (n for n in _PROBED if n <= batch_size(batch)):
        try:
            return attempt(take(batch, slice(0, samples)))
        except (UnprovenError, ZeroGradientsError) as error:
            reason = reason or error
    assert reason is not None, "a batch of one sample is not probed"
    raise reason


Begin = Callable[[Accumulation | None, Tensor, torch.dtype, bool], None]
"""Takes the accumulation, if any, the losses, the coarsest dtype, and whether looking at calls is no proof."""


def discover(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    named: Mapping[str, Tensor],
    *,
    plan: CallPlan | None = None,
    accumulation: Callable[[Guide], Accumulation] | None = None,
    begin: Begin | None = None,
) -> CallPlan:
    """Record one forward pass, and derive from backward passes which rows belong to which sample.

    With an accumulation the last backward pass adds the squares too. `begin` is called when the forward pass is over.
    """
    samples = batch_size(batch)
    fixed = [*buffers(model).values(), *(p for p in model.parameters() if not p.requires_grad), *_attributes(model)]
    guide = Discovery(samples, fixed, tensors(batch), plan)
    adding = accumulation(guide) if accumulation is not None else None
    guide.accumulation = adding
    interceptor = adding.interceptor if adding is not None else Interceptor(named, guide)
    try:
        losses = interceptor.forward(model, objective, batch)
        if plan is not None:
            plan.end(len(guide.steps))
        opaque = _opaque(losses, named, guide.steps) or interceptor.unseen
        guide.precision = coarsest(guide.precisions | {p.dtype for p in named.values()})
        if adding is not None:
            adding.shared = shared_names(guide.steps)
        if begin is not None:
            begin(adding, losses, guide.precision, opaque)
        if samples > 1:
            guide.scaling = True
            for scale in coefficients(samples, exponents(guide.precision), losses):
                interceptor.backward((losses * scale).sum(), keep=True)
                guide.digits += 1
            guide.scaling = False
        interceptor.backward(losses.sum())
        if guide.problem is not None:
            raise guide.problem
        if adding is not None:
            adding.finish()
        return guide.plan()
    finally:
        if adding is not None:
            adding.close()


def _attributes(model: nn.Module) -> Iterator[Tensor]:
    """List the tensors in plain attributes of modules, also in dictionaries and lists."""
    waiting, seen = list[Any](map(vars, model.modules())), set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor) and not value.requires_grad:
            yield value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _opaque(losses: Tensor, named: Mapping[str, Tensor], steps: Iterable[Step]) -> bool:
    """Refuse parameters that are used by functions nobody sees; say whether there is more than rules can prove."""
    leaves, custom = parameters_in_graph(losses)
    names = {id(p): name for name, p in named.items()}
    unseen = sorted(names[id(leaf)] for leaf in leaves if id(leaf) in names)
    if unseen:
        raise UnprovenError(f"{' and '.join(unseen)}: used by a function that cannot be intercepted")
    foreign = any(
        step.rule is not None
        and (isinstance(step.rule, Rerun) or not type(step.rule).__module__.startswith("unlearnkit."))
        for step in steps
    )
    hooked = any(p._backward_hooks for p in named.values())  # noqa: SLF001 - torch has no public name for it
    return custom or foreign or hooked


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Hold half-precision weights and buffers in float32 for a while."""
    held = [(t, t.data) for t in [*model.parameters(), *model.buffers()] if t.dtype in HALF]
    try:
        for t, data in held:
            t.data = data.float()
        yield
    finally:
        for t, data in held:
            t.data = data
