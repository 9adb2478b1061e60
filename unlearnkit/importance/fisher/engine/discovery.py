"""The probe: what a forward pass does with each parameter, and which rows belong to which sample."""

from collections.abc import Callable, Iterable
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.call_plan import Action, Script, Step, UnprovenError
from unlearnkit.importance.fisher.engine.gradient_tap import Gradients, Sink, results
from unlearnkit.importance.fisher.engine.interceptor import Guide, Seen, enterable, in_place
from unlearnkit.importance.fisher.engine.row_layout import Layout, recognise, touched_rows
from unlearnkit.importance.fisher.engine.rule import Call, Rule, rule_for
from unlearnkit.importance.fisher.rules.expand import spreading
from unlearnkit.importance.fisher.rules.one_sample_at_a_time import AnyFunction, Rerun, SeveralResults


@final
class Discovery(Guide):
    """Decides about every call the first time, and watches one sample's loss at a time.

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

    def script(self) -> Script:
        """Return the steps, each claim with its layout."""
        steps = [self._settled(i, step) for i, step in enumerate(self._steps)]
        slow = dict.fromkeys(step.describe() for step in steps if isinstance(step.rule, Rerun))
        return Script(steps, slow=tuple(slow))

    def compare(self, script: Script) -> None:
        """Hold what these samples' losses touch against the layouts that are known, where the calls are the same."""
        pairs = list(zip(self._steps, script.steps, strict=False))
        if len(self._steps) != len(script.steps) or any(not _same_call(mine, known) for mine, known in pairs):
            return
        for index, (mine, known) in enumerate(pairs):
            for shape, layout, seen in zip(mine.shapes, known.layouts, self._touched.get(index, ()), strict=False):
                fits = layout is not None and shape[: len(head := layout.length(self._samples))] == head
                if layout is not None and fits and not layout.agrees(_masks(shape, seen)):
                    raise UnprovenError(f"{mine.describe()}: its rows belong to other samples than they did")

    def step(self, seen: Seen) -> Step | None:
        """Decide about a call; see `Guide.step`."""
        tracked = {id(t) for t in seen.tracked}
        mixed = any(id(t) not in tracked and id(t) not in self._constants for t in seen.tensors)
        step = self._mixed(seen) if mixed else self._alone(seen)
        if step is not None:
            self._steps.append(step)
        return step

    def sink(self, step: Step, call: Call, y: Any) -> Sink:
        """Watch the gradient of a claimed call; see `Guide.sink`."""
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
        """Remember what is made of constants alone; see `Guide.passed`."""
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
        rule = spreading(seen.function, seen.tracked[0], result, self._samples) if len(seen.tracked) == 1 else None
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
        layouts = tuple(
            self._layout(step, step.rule, shape, seen)
            for shape, seen in zip(step.shapes, self._touched[index], strict=True)
        )
        step = attrs.evolve(step, layouts=layouts)
        leading = step.inputs.length(self._samples) if step.inputs is not None else ()
        if any(shape[: len(leading)] != leading for shape in self._saved[index]):
            raise UnprovenError(f"{step.describe()}: its input and its output have their samples in different places")
        return step

    def _layout(self, step: Step, rule: Rule, shape: tuple[int, ...], seen: list[Tensor | None]) -> Layout | None:
        """Recognise the layout of one result; None where no gradient came: until one comes, its rows do not matter."""
        touched = _masks(shape, seen)
        layout = recognise(shape, touched, free_rows=rule.free_rows)
        if layout is None and any(bool(t.any()) for t in touched):
            raise UnprovenError(f"{step.describe()}: which of its rows belong to which sample cannot be told")
        return layout


def _masks(shape: tuple[int, ...], seen: list[Tensor | None]) -> list[Tensor]:
    return [torch.zeros(shape[:2], dtype=torch.bool) if t is None else t.cpu() for t in seen]


def _same_call(one: Step, other: Step) -> bool:
    return one.function == other.function and one.names == other.names


def _covers(rule: Rule, seen: Seen) -> bool:
    call = rule.bind(*seen.args, **seen.kwargs)
    if call is None:
        return False
    held = {id(w) for w in call.weights.values() if w is not None}
    return all(id(t) in held for t in seen.tracked)


def _step(action: Action, seen: Seen, rule: Rule | None = None) -> Step:
    return Step(action=action, function=seen.function, names=seen.names, rule=rule)
