"""Receives the gradients of claimed layers and adds their squares; those of shared weights wait for the end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.fisher.intercept import Guide, Interceptor, Seen
from unlearnkit.fisher.ledger import Part
from unlearnkit.fisher.rule import Call, Rule
from unlearnkit.fisher.script import Script, Step, UnprovenError
from unlearnkit.fisher.tap import Sink


@final
@attrs.frozen(kw_only=True, eq=False)
class _Use:
    """One use of a weight whose per-sample gradients must be added to others before they are squared."""

    label: str
    role: str
    rule: Rule
    g: Tensor
    call: Call


@final
class Following(Guide):
    """Follows a script and adds squares.

    Args:
        script: From a probe.
        samples: n.
        parts: Which samples are added where; all samples, in order.
    """

    def __init__(self, script: Script, samples: int, parts: Sequence[Part]) -> None:
        self._script = script
        self._samples = samples
        self._parts = parts
        self._totals = parts[0].sums.squares  # for dtypes and shapes, which all have in common
        self._uses: list[_Use] = []
        self._surprises: list[tuple[Step, Tensor]] = []  # looked at once, because a look makes a device wait
        self.interceptor: Interceptor | None = None
        script.start()

    def step(self, seen: Seen) -> Step | None:
        """Follow the script; see `Guide.step`."""
        return self._script.peek(seen.function, seen.names)

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        """Check the shapes and return what adds the squares; see `Guide.sink`."""
        assert self.interceptor is not None, "set before the pass"
        step.check(y, self._samples)
        head = step.layout.length(self._samples) if step.layout else ()
        if any(tuple(t.shape[: len(head)]) != head for t in call.saved):
            raise UnprovenError(f"{step.describe()}: an input with other rows than in the probe")
        labels = {role: self.interceptor.label(weight) for role, weight in call.weights.items()}

        def receive(g: Tensor, saved: tuple[Tensor, ...]) -> None:
            self._receive(step, attrs.evolve(call, saved=saved), g, labels)

        return receive

    def finish(self) -> None:
        """Add the squares of weights that are used more than once or through other tensors; end the pass.

        Raises:
            UnprovenError: A gradient came where the probe had none.
        """
        if self._surprises and bool(torch.stack([seen for _, seen in self._surprises]).any()):
            step = next(step for step, seen in self._surprises if bool(seen))
            raise UnprovenError(f"{step.describe()}: a gradient where the probe had none")
        with torch.no_grad():
            for group in _together(self._uses, self._derived):
                self._add_together(group)

    @property
    def _derived(self) -> dict[str, tuple[Tensor, frozenset[str]]]:
        assert self.interceptor is not None, "set before the pass"
        return self.interceptor.derived

    def _receive(self, step: Step, call: Call, g: Tensor, labels: Mapping[str, str | None]) -> None:
        if step.layout is None:
            self._surprises.append((step, (g != 0).any()))
            return
        assert step.rule is not None, "a claim has a rule"
        g = step.layout.samples_first(g, self._samples)
        saved = tuple(step.layout.samples_first(t, self._samples) for t in call.saved)
        for role, label in labels.items():
            if label is None:
                continue
            base = label if label not in self._derived else next(iter(self._derived[label][1]))
            dtype = self._totals.dtype(base) if step.rule.converts else None
            ready = attrs.evolve(call, saved=tuple(_converted(t, dtype) for t in saved))
            if label in self._script.shared or label in self._derived:
                use = _Use(label=label, role=role, rule=step.rule, g=_converted(g, dtype), call=ready)
                self._uses.append(use)
            else:
                self._add(step.rule, role, _converted(g, dtype), ready, label)

    def _add(self, rule: Rule, role: str, g: Tensor, call: Call, label: str) -> None:
        for part in self._parts:
            whole = len(self._parts) == 1
            mine = call if whole else attrs.evolve(call, saved=tuple(part.of(t) for t in call.saved))
            rows = g if whole else part.of(g)
            rule.add_squares(role, rows, mine, part.sums.squares.slot(label))
            if part.sums.absolute is not None:
                rule.add_absolute(role, rows, mine, part.sums.absolute.slot(label))

    def _add_together(self, uses: list[_Use]) -> None:
        slots = [self._totals.slot(name) for name in sorted({name for use in uses for name in self._bases(use.label)})]
        made = sum(self._derived[u.label][0].numel() for u in uses if u.label in self._derived)
        work = max(use.rule.work(use.g, use.call) for use in uses) + made + sum(slot.numel for slot in slots)
        for part in self._parts:
            for cut in slots[0].chunks(part.rows.stop - part.rows.start, work):
                sums: dict[str, Tensor] = {}
                for name, one in self._pieces(uses, slice(part.rows.start + cut.start, part.rows.start + cut.stop)):
                    sums[name] = one if name not in sums else sums[name] + one
                for name, one in sums.items():
                    part.sums.receive(name, one)

    def _pieces(self, uses: list[_Use], rows: slice) -> Iterator[tuple[str, Tensor]]:
        for use in uses:
            call = attrs.evolve(use.call, saved=tuple(t[rows] for t in use.call.saved))
            per_sample = use.rule.per_sample(use.role, use.g[rows], call)
            if use.label not in self._derived:
                yield use.label, per_sample.reshape(len(per_sample), *self._totals.slot(use.label).shape)
                continue
            tensor, bases = self._derived[use.label]
            yield from self._pulled(tensor, bases, per_sample.reshape(len(per_sample), *tensor.shape))

    def _pulled(self, tensor: Tensor, bases: frozenset[str], per_sample: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Carry per-sample gradients of a tensor made of parameters back to these."""
        names = sorted(bases)
        leaves = [self._totals.parameter(name) for name in names]
        found = [
            torch.autograd.grad(tensor, leaves, one.to(tensor.dtype), retain_graph=True, allow_unused=True)
            for one in per_sample
        ]
        for i, name in enumerate(names):
            parts = [g[i] for g in found]
            if parts[0] is not None:
                yield name, torch.stack([p for p in parts if p is not None]).to(self._totals.dtype(name))

    def _bases(self, label: str) -> frozenset[str]:
        return self._derived[label][1] if label in self._derived else frozenset({label})


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
