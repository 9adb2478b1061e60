"""Receives the gradients of claimed layers and adds their squares; those of shared weights wait for the end."""

import functools
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.call_plan import CallPlan, Step, UnprovenError
from unlearnkit.importance.fisher.engine.interceptor import Gradients, Guide, Interceptor, Seen, Sink
from unlearnkit.importance.fisher.engine.per_sample_fallback import QUIET
from unlearnkit.importance.fisher.engine.regions import Region, apart
from unlearnkit.importance.fisher.engine.rule import Call, Rule
from unlearnkit.importance.fisher.engine.totals import Part, Slot, Totals

_ADDED = 3  # gradients of one weight held at a time: two uses' and their sum

_SMALL = 1 << 12  # elements of a parameter whose per-sample gradients are formed at once and shared out among groups


@final
@attrs.frozen(kw_only=True, eq=False)
class _Use:
    """One use of a weight; the per-sample gradients of several uses are added before squaring."""

    label: str
    role: str
    rule: Rule
    g: Tensor
    call: Call

    @property
    def size(self) -> int:
        """Elements of one sample that are kept until the end of the pass."""
        return sum(t[0].numel() for t in (self.g, *self.call.saved) if len(t))

    @property
    def kind(self) -> tuple[object, ...]:
        """Key of uses that can be joined to one use with more rows."""
        if not self.rule.free_rows or self.call.options is not None:
            return (id(self),)
        shapes = tuple(t.shape[2:] for t in (self.g, *self.call.saved))
        return (self.label, self.role, self.rule, shapes)

    def of(self, rows: slice) -> "_Use":
        return attrs.evolve(self, g=self.g[rows], call=self.call.holding(t[rows] for t in self.call.saved))


@final
class Accumulation(Guide):
    """Follows a call plan and adds the squares of per-sample gradients."""

    def __init__(
        self,
        plan: CallPlan | None,
        samples: int,
        parts: Sequence[Part],
        pattern: Totals,
        *,
        named: Mapping[str, Tensor],
        guide: Guide | None = None,
    ) -> None:
        self._plan, self._place = plan, 0
        self.shared: frozenset[str] = plan.shared if plan is not None else frozenset()
        """Parameters whose per-sample gradients are added before they are squared."""
        self.samples = samples
        self.parts = list(parts)
        """Where the squares go; a part may be added until the backward pass."""
        self._totals = pattern  # for dtypes and shapes, which all parts have in common
        self._uses: list[_Use] = []
        self._surprises: list[tuple[Step, Tensor]] = []  # looked at once, because a look makes a device wait
        self.interceptor = Interceptor(named, guide or self)
        self._derived, self._regions = self.interceptor.derived, self.interceptor.regions

    def step(self, seen: Seen) -> Step | None:
        """Return the next step of the plan when it is this call, and move on."""
        step = self._plan.at(self._place, seen.function, seen.names) if self._plan is not None else None
        self._place += step is not None
        return step

    def end_forward(self) -> None:
        """Check that all steps of the plan have come."""
        if self._plan is not None:
            self._plan.end(self._place)

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        step.check(y, self.samples)
        head = step.inputs.length(self.samples) if step.inputs is not None else ()
        if any(tuple(t.shape[: len(head)]) != head for t in call.saved):
            raise UnprovenError(f"{step.describe()}: an input with other rows than in the first batch")
        labels = self.labels(call)
        bare = call.holding(())  # autograd gives up what is saved as it goes back, and so must we

        def receive(gradients: Gradients, saved: tuple[Tensor, ...]) -> None:
            self.receive(step, bare.holding(saved), gradients, labels)

        return receive

    def labels(self, call: Call) -> dict[str, str | None]:
        """Return the name of the parameter, or of what was made of parameters, in each role."""
        return {role: self.interceptor.label(weight) for role, weight in call.weights.items()}

    def finish(self) -> None:
        """Add the squares of weights that are used more than once or through other tensors."""
        if self._surprises and bool(torch.stack([seen for _, seen in self._surprises]).any()):
            step = next(step for step, seen in self._surprises if bool(seen))
            raise UnprovenError(f"{step.describe()}: a gradient where the first batch had none")
        groups, self._uses = _together(self._uses, self._derived), []
        with torch.no_grad():
            while groups:
                names, parts = self._split(groups.pop(0))
                while parts:
                    self._add_together(*parts.pop(0))  # whose gradients are given back before the next are joined
                for part in (part for part in self.parts if part.wants(names)):
                    for name in sorted(names):
                        part.complete(name)

    def close(self) -> None:
        """Free what the pass left.

        The graph holds the taps, these hold this, and a gradient that waits was saved with its place on the graph: a
        cycle, which would keep all of it until Python next collects garbage.
        """
        self._uses, self._surprises = [], []
        del self.interceptor, self._derived, self._regions

    def receive(self, step: Step, call: Call, gradients: Gradients, labels: Mapping[str, str | None]) -> None:
        """Add what the gradients of a call's results say of its parameters, or keep it for `finish`."""
        pairs = list(zip(gradients, step.layouts, strict=True))
        self._surprises += [(step, (g != 0).any()) for g, layout in pairs if g is not None and layout is None]
        if step.inputs is None or all(g is None or layout is None for g, layout in pairs):
            return
        assert step.rule is not None, "a claim has a rule"
        n = self.samples
        g, *more = (  # an empty tensor where there is no gradient, for rules of several results
            call.saved[0].new_empty(n, 0) if g is None or layout is None else layout.gradient(g, n)
            for g, layout in pairs
        )
        saved = (*(step.inputs.samples_first(t, n) for t in call.saved), *more)
        ready: dict[torch.dtype | None, tuple[Tensor, Call]] = {}  # once for a weight and its bias
        for role, label in labels.items():
            if label is None or not self._wanted(label):
                continue
            base = next(iter(self._bases(label)))
            dtype = self._totals.dtype(base) if step.rule.converts else None
            if dtype not in ready:
                ready[dtype] = _converted(g, dtype), call.holding(_converted(t, dtype) for t in saved)
            mine, bound = ready[dtype]
            use = _Use(label=label, role=role, rule=step.rule, g=mine, call=bound)
            if label in self.shared or label in self._derived:
                self._uses.append(use)
            else:
                self._add(use)

    def _wanted(self, label: str) -> list[Part]:
        if all(part.only is None for part in self.parts):
            return self.parts
        return [part for part in self.parts if part.wants(self._bases(label))]

    def _add(self, use: _Use) -> None:
        parts = self._wanted(use.label)
        kept = [part for part in parts if part.take is None] if len(parts) > 1 else []
        shared_out = len(kept) > 1 and self._small(use)
        if shared_out:
            per_sample = use.rule.per_sample(use.role, use.g, use.call)
            for part in kept:
                part.sums.receive(use.label, per_sample[part.rows])
        for part in parts:
            if part.take is not None or not shared_out:
                _hand_on(use if part.rows == slice(0, self.samples) else use.of(part.rows), part)
            part.complete(use.label)

    def _small(self, use: _Use) -> bool:
        """Whether forming all per-sample gradients is cheaper than one call of the rule for each part."""
        slot = self._totals.slot(use.label)
        work = self.samples * (slot.numel + use.rule.work(use.g, use.call)) * slot.dtype.itemsize
        return slot.numel <= _SMALL and work <= self._totals.memory

    def _split(self, uses: list[_Use]) -> tuple[frozenset[str], list[tuple[list[_Use], Region | None]]]:
        """Set uses of disjoint regions of one parameter apart: each is a parameter of its own."""
        names = frozenset[str]().union(*(self._bases(use.label) for use in uses))
        if len(names) > 1 or not all(use.label in self._regions for use in uses):
            return names, [(uses, None)]
        found = [self._regions[use.label] for use in uses]
        if not apart(found):
            return names, [(uses, None)]
        each = [(region, [u for u in uses if self._regions[u.label] == region]) for region in dict.fromkeys(found)]
        # One label for all, so that they count as uses of one weight.
        return names, [([attrs.evolve(u, label=mine[0].label) for u in mine], region) for region, mine in each]

    def _add_together(self, uses: list[_Use], region: Region | None) -> None:
        names = frozenset[str]().union(*(self._bases(use.label) for use in uses))
        slots = [self._totals.slot(name) for name in sorted(names)]
        if region is not None:
            slots = [slots[0].of(region)]
        work = self._work(uses, slots, region)
        for part in (part for part in self.parts if part.wants(names)):
            for cut in slots[0].chunks(part.rows.stop - part.rows.start, work):
                rows = slice(part.rows.start + cut.start, part.rows.start + cut.stop)
                self._add_chunk(_merged([use.of(rows) for use in uses]), part, region)

    def _work(self, uses: list[_Use], slots: list[Slot], region: Region | None) -> int:
        waiting = sum(use.size for use in uses)
        if len({use.kind for use in uses}) == 1 and (uses[0].label not in self._derived or region is not None):
            return waiting  # one use with more rows: no gradient of a whole weight is formed
        if region is None and _few_and_rest(uses, self._derived) is not None:
            return 2 * waiting
        made = sum(self._derived[u.label][0].numel() for u in uses if u.label in self._derived)
        formed = _ADDED * sum(slot.numel for slot in slots)
        return max(waiting, max(use.rule.work(use.g, use.call) for use in uses) + made + formed)

    def _add_chunk(self, uses: list[_Use], part: Part, region: Region | None) -> None:
        if region is not None:
            slot = part.sums.slot(next(iter(self._bases(uses[0].label)))).of(region)
            if len(uses) == 1:
                uses[0].rule.add_squares(uses[0].role, uses[0].g, uses[0].call, slot)
            else:
                each = (use.rule.per_sample(use.role, use.g, use.call) for use in uses)
                slot.add(functools.reduce(torch.add, (g.reshape(len(g), *region.shape) for g in each)))
            return
        if len(uses) == 1 and uses[0].label not in self._derived:
            _hand_on(uses[0], part)
            return
        found = _few_and_rest(uses, self._derived)
        if found is not None:
            _add_by_rows(*found, part)
            return
        sums: dict[str, Tensor] = {}
        for name, one in self._pieces(uses):
            sums[name] = one if name not in sums else sums[name] + one
        for name, one in sums.items():
            part.sums.receive(name, one)

    def _pieces(self, uses: list[_Use]) -> Iterator[tuple[str, Tensor]]:
        for use in uses:
            per_sample = use.rule.per_sample(use.role, use.g, use.call)
            if use.label not in self._derived:
                yield use.label, per_sample.reshape(len(per_sample), *self._totals.slot(use.label).shape)
                continue
            tensor, bases = self._derived[use.label]
            yield from self._pulled(tensor, bases, per_sample.reshape(len(per_sample), *tensor.shape))

    def _pulled(self, tensor: Tensor, bases: frozenset[str], per_sample: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Backpropagate per-sample gradients of a tensor made of parameters to these parameters."""
        names = sorted(bases)
        leaves = [self._totals.parameter(name) for name in names]
        gradients = per_sample.to(tensor.dtype)
        try:
            found = _backwards(tensor, leaves, gradients, is_grads_batched=True)
        except (RuntimeError, NotImplementedError):  # a function that vmap does not know
            ones = [_backwards(tensor, leaves, one) for one in gradients]
            found = [None if parts[0] is None else torch.stack(parts) for parts in zip(*ones, strict=True)]
        for name, g in zip(names, found, strict=True):
            if g is not None:
                yield name, g.to(self._totals.dtype(name))

    def _bases(self, label: str) -> frozenset[str]:
        return self._derived[label][1] if label in self._derived else frozenset({label})


def _backwards(tensor: Tensor, leaves: list[Tensor], g: Tensor, *, is_grads_batched: bool = False) -> Any:
    with QUIET:
        return torch.autograd.grad(
            tensor, leaves, g, retain_graph=True, allow_unused=True, is_grads_batched=is_grads_batched
        )


def _hand_on(use: _Use, part: Part) -> None:
    use.rule.add_squares(use.role, use.g, use.call, part.sums.slot(use.label))


def _few_and_rest(uses: list[_Use], derived: Container[str]) -> tuple[list[_Use], _Use] | None:
    """Tell the look-ups in a table from its one use as a matrix: a tied embedding."""
    if len(uses) < 2 or any(use.label in derived for use in uses):
        return None
    few, rest = list[_Use](), list[_Use]()
    for use in uses:
        (rest if use.rule.few_rows(use.g, use.call) is None else few).append(use)
    return (few, rest[0]) if few and len(rest) == 1 and rest[0].rule.splits_rows else None


def _add_by_rows(few: list[_Use], rest: _Use, part: Part) -> None:
    """Add the squares of a tied embedding: looked-up rows from all uses, the others from its use as a matrix."""
    slot, found = part.sums.slot(rest.label), [use.rule.few_rows(use.g, use.call) for use in few]
    index, rows = (torch.cat(some, 1) for some in zip(*(one for one in found if one is not None), strict=True))
    more, g = rest.rule.apart(rest.g, rest.call, index)
    rest.rule.add_squares(rest.role, g, rest.call, slot)
    same = index.unsqueeze(2) == index.unsqueeze(1)
    first = ~same.tril(-1).any(2, keepdim=True)  # the first of equal numbers stands for all
    whole = (torch.bmm(same.to(rows.dtype), rows) + more) * first
    slot.add_rows(whole.flatten(0, 1), index.flatten())


def _merged(uses: list[_Use]) -> list[_Use]:
    """Join the uses of one weight by one rule, such as the steps of a loop, to one use with more rows."""
    kinds: dict[tuple[object, ...], list[_Use]] = {}
    for use in uses:
        kinds.setdefault(use.kind, []).append(use)
    joined = []
    for first, *more in kinds.values():
        if more:
            saved = [torch.cat(some, 1) for some in zip(*(use.call.saved for use in (first, *more)), strict=True)]
            g = torch.cat([use.g for use in (first, *more)], 1)
            joined.append(attrs.evolve(first, g=g, call=first.call.holding(saved)))
        else:
            joined.append(first)
    return joined


def _together(uses: list[_Use], derived: Mapping[str, tuple[Tensor, frozenset[str]]]) -> list[list[_Use]]:
    """Group the uses that share a parameter, directly or through others."""
    groups: list[tuple[set[str], list[_Use]]] = []
    for use in uses:
        bases = set(derived[use.label][1]) if use.label in derived else {use.label}
        members = [use]
        for group in [g for g in groups if g[0] & bases]:
            groups.remove(group)
            bases |= group[0]
            members = group[1] + members
        groups.append((bases, members))
    return [members for _, members in groups]


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
