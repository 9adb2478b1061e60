"""The recorded sequence of parametric calls of a forward pass; later passes must match it.

Each call knows which rows of its output belong to which sample: recognised from a few samples, never guessed.
"""

import abc
import enum
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.rule import Rule, name_of

_WASTE, _FEW = 8, 1 << 10  # rows with padding: as a multiple of the rows, and where that does not matter


@final
class UnprovenError(Exception):
    """The engine cannot prove that it would be exact here; the message says where and why."""


@final
class ZeroGradientsError(Exception):
    """The samples that were compared have no gradients, which proves nothing of others."""


class Rows(abc.ABC):
    """Which rows of a tensor belong to which sample: of its dimension 0, or of dimensions 0 and 1."""

    @abc.abstractmethod
    def length(self, samples: int) -> tuple[int, ...]:
        """Return the leading sizes of a tensor of so many samples."""

    @abc.abstractmethod
    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        """Reorder a tensor to (samples, rows of a sample, …)."""

    def gradient(self, g: Tensor, samples: int) -> Tensor:
        """Reorder a gradient like `samples_first`, with zeros where a sample has fewer rows than others."""
        return self.samples_first(g, samples)


@final
class Order(enum.Enum):
    """Where the samples stand: rows of a sample side by side, every n-th row, or along dimension 1."""

    MAJOR = "major"
    MINOR = "minor"
    SECOND = "second"


@final
@attrs.frozen(kw_only=True)
class Layout(Rows):
    """Every sample has the same number of rows, in the same order in every batch."""

    order: Order
    rows: int

    def length(self, samples: int) -> tuple[int, ...]:
        return (self.rows, samples) if self.order is Order.SECOND else (self.rows * samples,)

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        if self.order is Order.SECOND:
            return tensor.transpose(0, 1)
        if self.order is Order.MINOR:
            return tensor.view(self.rows, samples, *tensor.shape[1:]).transpose(0, 1)
        return tensor.view(samples, self.rows, *tensor.shape[1:])

    def agrees(self, owners: Tensor, samples: int) -> bool:
        """Whether every row with a gradient belongs to the sample that this layout says; see `owners_of`."""
        mine = self.samples_first(owners, samples)
        own = torch.arange(samples, device=owners.device).view(-1, *[1] * (mine.dim() - 1))
        return bool(((mine == own) | (mine < 0)).all())


@final
class Scattered(Rows):
    """The rows of one batch, in any order and number, as derived from that batch alone."""

    def __init__(self, owners: Tensor, samples: int) -> None:
        self._size = len(owners)
        rows = torch.argsort(owners, stable=True)
        rows = rows[int((owners < 0).sum()) :]
        counts = torch.bincount(owners[rows], minlength=samples)
        starts = (counts.cumsum(0) - counts)[owners[rows]]
        most = max(1, int(counts.max()))
        if samples * most > max(_WASTE * self._size, _FEW):
            raise UnprovenError(f"rows of which one sample has {most} of {self._size}")
        self._index = rows.new_full((samples, most), -1)
        self._index[owners[rows], torch.arange(len(rows), device=rows.device) - starts] = rows

    def length(self, samples: int) -> tuple[int, ...]:
        del samples
        return (self._size,)

    def samples_first(self, tensor: Tensor, samples: int) -> Tensor:
        del samples
        return tensor[self._index.clamp(min=0)]

    def gradient(self, g: Tensor, samples: int) -> Tensor:
        absent = (self._index < 0).view(*self._index.shape, *[1] * (g.dim() - 1))
        return self.samples_first(g, samples).masked_fill(absent, 0)


def recognise(owners: Tensor, samples: int, *, free_rows: bool) -> Layout | None:
    """Find the one layout that agrees with the owners of rows, shape (rows,) or (rows, second dimension)."""
    size, possible = len(owners), []
    if size % samples == 0:
        possible.append(Layout(order=Order.MAJOR, rows=size // samples))
    if free_rows and owners.dim() > 1 and owners.shape[1] == samples:
        possible.append(Layout(order=Order.SECOND, rows=size))
    if size % samples == 0 and size > samples:
        possible.append(Layout(order=Order.MINOR, rows=size // samples))
    agreeing = [layout for layout in possible if layout.agrees(owners, samples)]
    return agreeing[0] if len(agreeing) == 1 else None


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
    layouts: tuple[Rows | None, ...] = ()
    samples: int = 0
    """How many there were when the shapes were seen."""

    @property
    def inputs(self) -> Rows | None:
        """Layout of what the rule saves: that of its one result, or samples first."""
        moved = self.rule is not None and self.rule.moves
        return Layout(order=Order.MAJOR, rows=1) if moved else self.layouts[0]

    def describe(self) -> str:
        return f"{name_of(self.function)} of {' and '.join(self.names) or 'no parameter'}"

    def check(self, y: Any, samples: int) -> None:
        """Refuse an output with another number of rows than the layout says."""
        found = results(y)
        if len(found) != len(self.shapes):
            raise UnprovenError(f"{self.describe()}: expected {len(self.shapes)} outputs, saw {len(found)}")
        for t, shape, layout in zip(found, self.shapes, self.layouts, strict=True):
            head = layout.length(samples) if layout is not None else tuple(t.shape)
            expected, mine = (*head, *shape[len(head) :]), tuple(t.shape)
            if layout is None or mine == expected:
                continue
            among = (samples if size == self.samples else size for size in shape[len(head) :])  # logits of pairs
            if mine != (*head, *among):
                raise UnprovenError(f"{self.describe()}: expected an output of shape {expected}, saw {mine}")


@final
@attrs.define(kw_only=True, eq=False, slots=False)
class CallPlan:
    """The calls of one kind of forward pass, in order.

    Attributes:
        steps: The calls.
        precision: The coarsest dtype among weights and results.
        dynamic: Whether which rows belong to which sample depends on the data: every batch is recorded anew.
    """

    steps: tuple[Step, ...]
    precision: torch.dtype
    dynamic: bool = False

    @cached_property
    def shared(self) -> frozenset[str]:
        """Parameters used more than once, or through tensors made of them."""
        return shared_names(self.steps)

    @cached_property
    def doubtful(self) -> bool:
        """Whether some layer got no gradient when the plan was made, so that its layout is not known."""
        return any(step.action is Action.CLAIM and None in step.layouts for step in self.steps)

    def at(self, place: int, function: Callable[..., Any], names: tuple[str, ...]) -> Step | None:
        """Return the step at a place when it is this call."""
        step = self.steps[place] if place < len(self.steps) else None
        return step if step is not None and step.names == names and step.function == function else None

    def end(self, place: int) -> None:
        """Raise an error when steps are left at the end of a forward pass."""
        if place < len(self.steps):
            raise UnprovenError(f"{self.steps[place].describe()}: expected a call as in the first batch, saw none")

    def same_calls(self, other: "CallPlan") -> bool:
        """Whether the same functions use the same parameters."""
        return [(s.function, s.names) for s in self.steps] == [(s.function, s.names) for s in other.steps]

    def other_rows(self, other: "CallPlan") -> Step | None:
        """Return the first call whose rows belong to other samples than in another plan of the same calls."""
        for mine, theirs in zip(self.steps, other.steps, strict=True):
            pairs = zip(mine.layouts, theirs.layouts, strict=True)
            if any(a != b for a, b in pairs if a is not None and b is not None):
                return mine
        return None

    def filled(self, other: "CallPlan") -> "CallPlan":
        """Take layouts that are not known from another plan of the same calls."""
        pairs = zip(self.steps, other.steps, strict=True)
        steps = [
            attrs.evolve(mine, layouts=tuple(a or b for a, b in zip(mine.layouts, theirs.layouts, strict=True)))
            for mine, theirs in pairs
        ]
        return attrs.evolve(self, steps=tuple(steps))


def shared_names(steps: Sequence[Step]) -> frozenset[str]:
    """Name the parameters that are used more than once, or through tensors made of them."""
    used = Counter(name for step in steps if step.action is not Action.ENTER for name in step.names)
    derived = {name for step in steps if step.action is Action.DERIVE for name in step.names}
    return frozenset(derived | {name for name, times in used.items() if times > 1})


def coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    """Return the dtype that rounds most."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype in dtypes:
            return dtype
    if dtypes != {torch.float64}:
        raise UnprovenError(f"expected parameters of a known floating dtype, saw {sorted(map(str, dtypes))}")
    return torch.float64
