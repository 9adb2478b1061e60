"""What the calls of a forward pass with parameters in them are: found out once, then followed."""

import enum
from collections import Counter
from collections.abc import Callable
from typing import Any, final

import attrs

from unlearnkit.importance.fisher.engine.gradient_tap import results
from unlearnkit.importance.fisher.engine.row_layout import Layout, Order
from unlearnkit.importance.fisher.engine.rule import Rule, name_of


@final
class UnprovenError(Exception):
    """The engine cannot prove that it would be exact here; the message says where and why."""


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
        """How what the rule saves is laid out: as its one result, or with the samples in front."""
        return self.layouts[0] if len(self.layouts) == 1 else Layout(order=Order.MAJOR, rows=1)

    def describe(self) -> str:
        """Say what this is in a message."""
        return f"{name_of(self.function)} of {' and '.join(self.names) or 'no parameter'}"

    def check(self, y: Any, samples: int) -> None:
        """Refuse an output whose rows are not as many as the probe's layout says."""
        found = results(y)
        if len(found) != len(self.shapes):
            raise UnprovenError(f"{self.describe()}: expected {len(self.shapes)} outputs, saw {len(found)}")
        for t, shape, layout in zip(found, self.shapes, self.layouts, strict=True):
            head = layout.length(samples) if layout is not None else tuple(t.shape)
            expected = (*head, *shape[len(head) :])
            if layout is not None and tuple(t.shape) != expected:
                raise UnprovenError(f"{self.describe()}: expected an output of shape {expected}, saw {tuple(t.shape)}")


@final
class Script:
    """The steps of one kind of forward pass, in order, as a probe found them."""

    def __init__(self, steps: list[Step], slow: tuple[str, ...] = ()) -> None:
        self.slow = slow
        self.steps = tuple(steps)
        self._next = 0
        used = Counter(name for step in steps if step.action is not Action.ENTER for name in step.names)
        derived = {name for step in steps if step.action is Action.DERIVE for name in step.names}
        self.shared = frozenset(derived | {name for name, times in used.items() if times > 1})
        """Parameters used more than once, or through tensors made of them."""
        self.doubtful = any(step.action is Action.CLAIM and None in step.layouts for step in steps)
        """Whether some layer got no gradient in the probe, so that its layout is not known."""

    def start(self) -> None:
        """Begin a pass."""
        self._next = 0

    def peek(self, function: Callable[..., Any], names: tuple[str, ...]) -> Step | None:
        """Return the next step when it is this call, and move on."""
        if self._next < len(self.steps):
            step = self.steps[self._next]
            if step.names == names and step.function == function:
                self._next += 1
                return step
        return None

    def finish(self) -> None:
        """End a pass."""
        if self._next < len(self.steps):
            raise UnprovenError(f"{self.steps[self._next].describe()}: expected a call as in the probe, saw none")
