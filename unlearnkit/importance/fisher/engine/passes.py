"""Passes over a batch by a call plan: forward under the interceptor, backward to the taps; and the store of plans."""

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from unlearnkit.data.batches import batch_size, map_tensors, take, tensors
from unlearnkit.importance.fisher.engine.accumulate import Accumulation
from unlearnkit.importance.fisher.engine.call_plan import CallPlan, UnprovenError, ZeroGradientsError
from unlearnkit.importance.fisher.engine.fallback_rules import Rerun
from unlearnkit.importance.fisher.engine.interceptor import Guide
from unlearnkit.importance.fisher.engine.kernel import KernelFailedError, out_of_memory
from unlearnkit.importance.fisher.engine.nan_check import Underflow
from unlearnkit.importance.fisher.engine.per_sample_fallback import Comparison, SquaredGradients, check_alone
from unlearnkit.importance.fisher.engine.probe import (
    Begin,
    discover,
    first_proof,
    in_float32,
)
from unlearnkit.importance.fisher.engine.rule import number_of_rules
from unlearnkit.importance.fisher.engine.totals import GroupTotals, Part
from unlearnkit.models.objective import HALF, Autocast, Objective, check_losses, without_autocast
from unlearnkit.models.parameters import trainable
from unlearnkit.utils.errors import UnlearnKitError, UnlearnKitWarning, UnsupportedModelError

SIZES = 8  # batch sizes whose first pass is checked for rows of other samples
_COMPARED = 1 << 18  # weights whose gradients are compared in any case
_ALONE = 3  # samples whose gradients are compared
_SPOT_CHECKED = 3  # samples
Kind = tuple[object, ...]
"""What `signature` returns."""


@final
class SpotChecks:
    """Draws one pass of every so many, and a few samples in it; the same ones in every run."""

    def __init__(self, every: int) -> None:
        self._every, self.passes = every, 0

    def rows(self, size: int) -> list[int]:
        """Count one pass, and return the samples of it to check; mostly none."""
        index, self.passes = self.passes, self.passes + 1
        if not self._every or index == 0:  # the first pass is probed
            return []
        window, place = divmod(index, self._every)
        draw = np.random.default_rng(window)
        if place != int(draw.integers(int(window == 0), self._every)):
            return []
        return [int(row) for row in draw.permutation(size)[:_SPOT_CHECKED]]


@final
class PlanStore:
    """What was found out about one model and objective: the plans of each kind of batch, and the sizes checked."""

    def __init__(self, key: object) -> None:
        self.key = key
        self.plans: dict[Kind, CallPlan] = {}
        self.sizes: set[tuple[Kind, int]] = set()


_STORES: weakref.WeakKeyDictionary[nn.Module, PlanStore] = weakref.WeakKeyDictionary()


def plans_of(model: nn.Module, objective: Objective) -> PlanStore:
    """Return the plans that earlier estimates found for a model, as long as its structure is the same.

    Weights may have changed: a plan holds calls and layouts, and every pass checks its calls again.
    """
    modules = tuple((name, type(m), getattr(type(m), "forward", None), *_state(m)) for name, m in model.named_modules())
    own = () if attrs.has(type(objective)) else (id(objective), *_state(objective))
    key = (modules, type(objective), objective.describe(), own, number_of_rules())
    store = _STORES.get(model)
    if store is None or store.key != key:
        store = _STORES[model] = PlanStore(key)
    return store


def _state(value: Any) -> tuple[object, ...]:
    """What a forward pass may depend on: modes and other plain attributes, tensors, hooks, a forward of its own."""
    found: list[object] = []
    for name, one in vars(value).items():
        if isinstance(one, bool | int | float | str):
            found.append((name, one))
        elif name in {"_parameters", "_buffers"}:
            found += [(key, t.shape, t.dtype, t.device, t.requires_grad) for key, t in one.items() if t is not None]
        elif name == "forward" or (name.endswith("_hooks") and isinstance(one, Mapping)):
            found.append((name, *map(id, one.values())) if name != "forward" else id(one))
    return tuple(found)


@final
class Passes:
    """Adds squares by call plans, and proves that they are right.

    The first batch of each kind is recorded: which function uses which parameter, and which rows are whose.
    The totals of the sample with the largest loss must equal those of that sample alone. Of the first batch of each
    size, of one of every `recheck`, and of all where the rows depend on the data, the rows are derived again.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        totals: GroupTotals,
        fallback: SquaredGradients,
        underflow: Underflow,
        recheck: int,
    ) -> None:
        self._model, self._objective, self._named = model, objective, trainable(model)
        self._totals, self._fallback, self._underflow = totals, fallback, underflow
        self._spot_checks = SpotChecks(recheck)
        self._store = plans_of(model, objective)
        self._verified: set[Kind] = set()
        """Kinds whose plans this estimate has proven, or compared with a batch."""
        self._slow: set[str] = set()

    def known(self, kind: Kind) -> CallPlan | None:
        """Return the plan of a kind of batch, if there is one already."""
        return self._store.plans.get(kind)

    def forget(self, kind: Kind) -> None:
        """Record the next batch of a kind again."""
        self._store.plans.pop(kind, None)

    def run(self, batch: Any, kind: Kind, parts: Sequence[Part]) -> None:
        """Forward and backward over one batch; adds the squares of its per-sample gradients to the parts."""
        size = batch_size(batch)
        index, rows = self._spot_checks.passes, self._spot_checks.rows(size)
        if kind not in self._store.plans:
            self._prove(batch, kind, parts)
            return
        if kind not in self._verified:
            self._verify_known_plan(batch, kind, parts)
            return
        plan = self._store.plans[kind]
        self._say_slow(plan)
        new = (kind, size) not in self._store.sizes and len(self._store.sizes) < SIZES
        if not (plan.dynamic or new or rows):
            self._follow_or_record(batch, kind, parts)
            return
        begin = _compare_losses(rows, self._alone_losses(batch, rows)) if rows else None
        with _later_pass(index if rows and not plan.dynamic else 0):
            if not plan.dynamic:  # in a pass of its own, so that the sums have the same bits with and without it
                self._compare(batch, kind, plan, self._look(batch, plan, None, begin))
                plan, begin = self._store.plans[kind], None
            if plan.dynamic:
                self._record(batch, plan, parts, begin)
            else:
                self._follow_or_record(batch, kind, parts)
        self._store.sizes.add((kind, size))

    def _verify_known_plan(self, batch: Any, kind: Kind, parts: Sequence[Part]) -> None:
        """Add the first batch of a kind that an earlier estimate knows: what no key sees may have changed since."""
        self._verified.add(kind)
        plan, size = self._store.plans[kind], batch_size(batch)
        if plan.dynamic or (kind, size) not in self._store.sizes:
            self._prove(batch, kind, parts)
            return
        self._say_slow(plan)
        ends = [0, size - 1]
        try:
            self.follow(batch, plan, parts, _compare_losses(ends, self._alone_losses(batch, ends)))
        except UnprovenError:
            self._prove(batch, kind, parts)

    def _follow_or_record(self, batch: Any, kind: Kind, parts: Sequence[Part]) -> None:
        plan = self._store.plans[kind]
        try:
            self.follow(batch, plan, parts)
        except UnprovenError:  # another way than before; what a doubtful plan added can be taken out again
            self._store.plans[kind] = attrs.evolve(plan, dynamic=True)
            self._record(batch, plan, parts)

    def _prove(self, batch: Any, kind: Kind, parts: Sequence[Part]) -> None:
        """Add the first batch of a kind, and find its plan.

        What the batch shows itself is the plan if the totals of one sample are right. If not, a few samples are
        recorded alone: one dimension of this batch may be as long as another by chance.
        """
        self._store.plans.pop(kind, None)
        plan = None
        self._totals.begin(parts)
        if not self._half():
            with suppress(UnprovenError, ZeroGradientsError):
                plan = self._compared(batch, self._objective, self._fallback, parts)
        if plan is None:
            self._totals.begin(parts)
            alone: list[tuple[slice, Tensor]] = []
            known = first_proof(batch, lambda few: self._proven_few(few, alone))
            self._say_slow(known)
            rows, losses = alone[-1]
            plan = self._record(batch, known, parts, _compare_losses(range(rows.start, rows.stop), losses))
            if not plan.same_calls(known):
                self._proven(batch, alone)  # a few samples took other calls, which proves nothing about these
                plan = attrs.evolve(plan, dynamic=True)
            elif plan.other_rows(known) is not None:
                plan = attrs.evolve(plan, dynamic=True)
        self._say_slow(plan)
        self._store.plans[kind] = plan
        self._store.sizes.add((kind, batch_size(batch)))
        self._verified.add(kind)

    def _compare(self, batch: Any, kind: Kind, plan: CallPlan, found: CallPlan) -> None:
        """Keep a plan that another batch confirms; else record every batch from now on."""
        same = plan.same_calls(found)
        other = plan.other_rows(found) if same else None
        if other is not None and (kind, batch_size(batch)) in self._store.sizes:
            raise UnprovenError(f"{other.describe()}: its rows belong to other samples than they did")
        if not same or other is not None or found.dynamic:
            self._store.plans[kind] = attrs.evolve(plan, dynamic=True)
        elif plan.doubtful:
            self._store.plans[kind] = plan.filled(found)

    def follow(self, batch: Any, plan: CallPlan, parts: Sequence[Part], begin: Begin | None = None) -> None:
        """Make one pass by a plan; raise `UnprovenError` where the calls are others, before anything is added."""
        accumulation = Accumulation(plan, batch_size(batch), parts, self._totals.pattern, named=self._named)
        try:
            losses = accumulation.interceptor.forward(self._model, self._objective, batch)
            accumulation.end_forward()
            if begin is not None:
                begin(None, losses, plan.precision, False)
            accumulation.interceptor.backward(losses.sum())
            accumulation.finish()
        finally:
            accumulation.close()

    def _record(self, batch: Any, plan: CallPlan, parts: Sequence[Part], begin: Begin | None = None) -> CallPlan:
        """Add a batch by what it shows itself."""
        self._totals.begin(parts)
        return self._look(batch, plan, parts, begin)

    def _look(self, batch: Any, plan: CallPlan, parts: Sequence[Part] | None, begin: Begin | None) -> CallPlan:
        """Derive the rows of a batch's calls, which are those of the plan where they match."""
        matched = False

        def matches(*arguments: Any) -> None:
            nonlocal matched
            matched = True
            if begin is not None:
                begin(*arguments)

        try:
            return self._discover(self._objective, batch, parts, matches, plan)
        except UnprovenError:
            if matched:
                raise
        return self._discover(self._objective, batch, parts, begin)

    def _discover(
        self,
        objective: Objective,
        batch: Any,
        parts: Sequence[Part] | None,
        begin: Begin | None,
        plan: CallPlan | None = None,
    ) -> CallPlan:
        def accumulation(guide: Guide) -> Accumulation:
            assert parts is not None, "only asked for then"
            pattern = self._totals.pattern
            return Accumulation(None, batch_size(batch), parts, pattern, named=self._named, guide=guide)

        try:
            return discover(
                self._model,
                objective,
                batch,
                self._named,
                plan=plan,
                accumulation=accumulation if parts is not None else None,
                begin=begin,
            )
        except (UnlearnKitError, KernelFailedError, UnprovenError):
            raise
        except Exception as error:  # whatever fails under the interceptor, the fallback may work
            if out_of_memory(error):
                raise
            said = (str(error).strip().splitlines() or [""])[0][:160]
            raise UnprovenError(f"{type(error).__name__}: {said}") from error

    def _alone_losses(self, batch: Any, rows: Sequence[int]) -> Tensor:
        ones = [take(batch, slice(row, row + 1)) for row in rows]
        with torch.no_grad():
            return torch.cat(
                [check_losses(self._objective.losses(self._model, one), one, objective=self._objective) for one in ones]
            )

    def _half(self) -> bool:
        return isinstance(self._objective, Autocast) or any(p.dtype in HALF for p in self._named.values())

    def _proven_few(self, few: Any, alone: list[tuple[slice, Tensor]]) -> CallPlan:
        try:
            return self._proven(few, alone)
        except ZeroGradientsError:  # by the smaller parameters
            return self._proven(few, alone, everything=True)

    def _proven(self, few: Any, alone: list[tuple[slice, Tensor]], *, everything: bool = False) -> CallPlan:
        """Record a few samples, and compare their totals with those of one sample at a time.

        Half precision rounds too much to tell a mistake from rounding: the comparison is in float32.
        """
        if not self._half():
            return self._compared(few, self._objective, self._fallback, (), alone, everything=everything)
        objective = without_autocast(self._objective)
        wide = map_tensors(few, lambda t: t.float() if t.dtype in HALF else t)
        with in_float32(self._model):
            slow = SquaredGradients(self._model, objective, chunk=1)
            exact = self._compared(wide, objective, slow, (), alone, everything=everything)
        plan = self._discover(self._objective, few, None, None)
        if [(s.function, s.action) for s in plan.steps] != [(s.function, s.action) for s in exact.steps]:
            raise UnprovenError("calls that are others in float32")
        return plan

    def _compared(
        self,
        batch: Any,
        objective: Objective,
        fallback: SquaredGradients,
        parts: Sequence[Part],
        alone: list[tuple[slice, Tensor]] | None = None,
        *,
        everything: bool = False,
    ) -> CallPlan:
        """Add a batch by what it shows, and compare the totals of some samples with those of each alone.

        Where looking at calls proves which parameter is used where, one sample and the smaller parameters will do, and
        those that are used in parts. It is a sample with a large loss: one without a gradient proves nothing.
        """
        comparison, trials, losses = Comparison(), list[Part](), list[Tensor]()

        def begin(accumulation: Accumulation | None, seen: Tensor, precision: torch.dtype, opaque: bool) -> None:
            del precision
            assert accumulation is not None, "asked for"
            derived, regions = accumulation.interceptor.derived, accumulation.interceptor.regions
            parted = frozenset[str]().union(*(derived[label][1] for label in regions))
            only = frozenset(self._named) if opaque or everything else _some(self._named) | parted
            count = min(_ALONE, len(seen)) if opaque else 1
            first = min(int(seen.detach().argmax()), len(seen) - count)
            trial = self._totals.trial(slice(first, first + count), comparison.expect, only=only)
            accumulation.parts.append(trial)
            trials.append(trial)
            losses.append(seen.detach())

        plan = self._discover(objective, batch, parts, begin)
        (trial,), (seen,) = trials, losses
        names = trial.only or frozenset()
        for name in names:
            if not comparison.expects(name):  # nothing used it
                trial.complete(name)

        def receive(name: str, g: Tensor) -> None:
            comparison.receive(name, g)
            self._underflow.check(name, g, self._totals.dtype(name))

        expected = fallback.each(take(batch, trial.rows), receive, names=names)
        check_alone(seen[trial.rows], expected, plan.precision)
        comparison.verdict(plan.precision)
        if alone is not None:
            alone.append((trial.rows, expected))
        return plan

    def _say_slow(self, plan: CallPlan) -> None:
        new = dict.fromkeys(
            step.describe()
            for step in plan.steps
            if isinstance(step.rule, Rerun) and step.rule.alone and step.describe() not in self._slow
        )
        self._slow.update(new)
        if new:
            warnings.warn(
                f"no rule for {'; '.join(new)}: differentiated one sample at a time, that function alone, exactly but "
                "for one small forward and backward pass of it for each sample and weight: see register_rule",
                UnlearnKitWarning,
                stacklevel=2,
            )


def _compare_losses(rows: Sequence[int], alone: Tensor) -> Begin:
    def begin(accumulation: Accumulation | None, losses: Tensor, precision: torch.dtype, opaque: bool) -> None:
        del accumulation, opaque
        check_alone(losses[list(rows)], alone, precision)

    return begin


def _some(named: Mapping[str, Tensor]) -> frozenset[str]:
    """Choose the parameters whose gradients are compared: the smaller ones, at least one, up to an eighth of all."""
    limit, chosen = max(_COMPARED, sum(p.numel() for p in named.values()) // 8), list[str]()
    for name in sorted(named, key=lambda name: named[name].numel()):
        limit -= named[name].numel()
        if limit < 0 and chosen:
            break
        chosen.append(name)
    return frozenset(chosen)


def signature(batch: Any) -> Kind:
    """Name what the steps of a forward pass may depend on: shapes beside the batch's, dtypes, autocast."""
    shapes = tuple((tuple(t.shape[1:]), t.dtype) for t in tensors(batch))
    return (*shapes, *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")))


@contextmanager
def _later_pass(passes: int) -> Iterator[None]:
    """After the first pass a failed proof is an error: what has been added cannot be taken out again."""
    try:
        yield
    except UnprovenError as unproven:
        if not passes:
            raise
        raise UnsupportedModelError(
            f"expected samples that do not mix, as in the first batch, saw in pass {passes} (counted from 0): "
            f"{unproven}; what was added before may be wrong too; chunk=1 takes one sample in a pass, slowly and "
            "always right"
        ) from unproven
