"""The recorded sequence of parametric calls of a forward pass; later passes must match it.

Each call knows which rows of its output belong to which sample: recognised from a few samples, never guessed.
"""

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.rule import Rule, name_of


@final
class UnprovenError(Exception):
    """The engine cannot prove that it would be exact here; the message says where and why."""


@final
class Order(enum.Enum):
    """Where the samples stand: rows of a sample side by side, every n-th row, or along dimension 1."""

    MAJOR = "major"
    MINOR = "minor"
    SECOND = "second"


@final
@attrs.frozen(kw_only=True)
class Layout:
    """How dimension 0 (or 1) of a tensor is made of samples."""

    order: Order
    rows: int

    def length(self, samples: int) -> tuple[int, ...]:
        """Leading sizes of a tensor of so many samples."""
        return (self.rows, samples) if self.order is Order.SECOND else (self.rows * samples,)

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        """View a tensor sample by sample."""
        if self.order is Order.SECOND:
            return tensor.transpose(0, 1)
        if self.order is Order.MINOR:
            return tensor.view(self.rows, samples, *tensor.shape[1:]).transpose(0, 1)
        return tensor.view(samples, self.rows, *tensor.shape[1:])

    def agrees(self, touched: Sequence[Tensor]) -> bool:
        for sample, mask in enumerate(touched):
            mine = self.samples_first(mask, len(touched))
            if int(mine.count_nonzero()) != int(mine[sample].count_nonzero()):
                return False
        return True


def recognise(shape: Sequence[int], touched: Sequence[Tensor], *, free_rows: bool) -> Layout | None:
    """Find the layout of a layer's output from which rows each sample's loss touches."""
    samples, possible = len(touched), []
    if shape and shape[0] % samples == 0:
        possible.append(Layout(order=Order.MAJOR, rows=shape[0] // samples))
    if free_rows and len(shape) > 2 and shape[1] == samples:
        possible.append(Layout(order=Order.SECOND, rows=shape[0]))
    if shape and shape[0] % samples == 0 and shape[0] > samples:
        possible.append(Layout(order=Order.MINOR, rows=shape[0] // samples))
    agreeing = [layout for layout in possible if layout.agrees(touched)]
    return agreeing[0] if len(agreeing) == 1 else None


def touched_rows(gradient: Tensor) -> Tensor:
    """Mask of the leading indices with a nonzero gradient."""
    return (gradient != 0).flatten(2).any(2) if gradient.dim() > 2 else gradient != 0


def results(value: Any) -> list[Tensor]:
    """List the floating tensors of a function's result."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    return [t for item in value for t in results(item)] if isinstance(value, tuple | list) else []


@final
class Action(enum.Enum):
    """What to do with a call that has a parameter (or something made of parameters only) among its arguments."""

    CLAIM = "a rule knows its per-sample gradient"
    DERIVE = "it makes a tensor of parameters alone"
    ENTER = "look inside a function that is written in Python"


@final
@attrs.frozen(kw_only=True, eq=False)
class Step:
    """One call of the forward pass."""

    action: Action
    function: Callable[..., Any]
    names: tuple[str, ...]
    rule: Rule | None = None
    shapes: tuple[tuple[int, ...], ...] = ()
    layouts: tuple[Layout | None, ...] = ()

    @property
    def inputs(self) -> Layout | None:
        """Layout of what the rule saves: that of its one result, or samples first."""
        return self.layouts[0] if len(self.layouts) == 1 else Layout(order=Order.MAJOR, rows=1)

    def describe(self) -> str:
        return f"{name_of(self.function)} of {' and '.join(self.names) or 'no parameter'}"

    def check(self, y: Any, samples: int) -> None:
        """Refuse an output with another number of rows than the layout says."""
        found = results(y)
        if len(found) != len(self.shapes):
            raise UnprovenError(f"{self.describe()}: expected {len(self.shapes)} outputs, saw {len(found)}")
        for t, shape, layout in zip(found, self.shapes, self.layouts, strict=True):
            head = layout.length(samples) if layout is not None else tuple(t.shape)
            expected = (*head, *shape[len(head) :])
            if layout is not None and tuple(t.shape) != expected:
                raise UnprovenError(f"{self.describe()}: expected an output of shape {expected}, saw {tuple(t.shape)}")


@final
class CallPlan:
    """The calls of one kind of forward pass, in order, as a probe of a few samples recorded them."""

    def __init__(
        self, steps: Sequence[Step], *, precision: torch.dtype, samples: int, slow: tuple[str, ...] = ()
    ) -> None:
        self.steps, self.precision, self.samples, self.slow = tuple(steps), precision, samples, slow
        self._next = 0
        used = Counter(name for step in steps if step.action is not Action.ENTER for name in step.names)
        derived = {name for step in steps if step.action is Action.DERIVE for name in step.names}
        self.shared = frozenset(derived | {name for name, times in used.items() if times > 1})
        """Parameters used more than once, or through tensors made of them."""
        self.doubtful = any(step.action is Action.CLAIM and None in step.layouts for step in steps)
        """Whether some layer got no gradient in the probe, so that its layout is not known."""

    def start(self) -> None:
        self._next = 0

    def match(self, function: Callable[..., Any], names: tuple[str, ...]) -> Step | None:
        """Return the next step when it is this call, and move on."""
        if self._next < len(self.steps):
            step = self.steps[self._next]
            if step.names == names and step.function == function:
                self._next += 1
                return step
        return None

    def finish(self) -> None:
        """End a pass; all steps must have come."""
        if self._next < len(self.steps):
            raise UnprovenError(f"{self.steps[self._next].describe()}: expected a call as in the probe, saw none")
