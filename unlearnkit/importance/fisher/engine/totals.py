"""All that one pass adds up: squares for each group of samples and, on request, Σ|g| and batch gradients.

Every kernel adds in a layout of its own, in at least float32.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.kernel import Finish, KernelOperands, KernelPlan, KernelSet, SumBuffers
from unlearnkit.importance.fisher.engine.regions import Region
from unlearnkit.models.parameters import wide

ALL = "all samples"

_MIB = 1 << 20
_CHUNK_CAP = 32 * _MIB  # larger chunks leave the caches and gain nothing
_FEW, _LARGE = 8, 1 << 14  # samples and elements between which rows are added one by one
_TWO_SUM = {"cpu": 1 << 16}  # elements at a time: three of them stay in the cache
_ON_DEVICE = 1 << 22  # elements at a time where there is no cache to stay in: few operations, and little memory


_Buffers = dict[str, dict[str, tuple[Tensor, Finish]]]
"""{parameter name: {layout: (buffer, finish)}}."""


@final
class Totals:
    """The running totals of one pass.

    Between `begin` and `commit` squares are added apart from the rest, so that `roll_back` can take them out again.
    """

    def __init__(
        self,
        named: Mapping[str, Tensor],
        *,
        double: bool,
        memory: int,
        compensated: bool = False,
        kernels: KernelSet | None = None,
        signed: bool = False,
    ) -> None:
        self._named = dict(named)
        self._double = double
        self._dtypes = {name: torch.float64 if double else wide(p.dtype) for name, p in named.items()}
        self.memory = memory
        self._compensated = compensated
        self.kernels = kernels
        self._signed = signed
        self._buffers: _Buffers = {name: {} for name in named}
        self._open: _Buffers | None = None
        self._lost: dict[tuple[str, str], Tensor] = {}
        self.asked = 0
        """Number of buffers handed out; while it does not change, nothing was added."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a parameter's gradients are squared and added."""
        return self._dtypes[name]

    def parameter(self, name: str) -> Tensor:
        return self._named[name]

    def slot(self, name: str, *, absolute: "Totals | None" = None, signed: "Totals | None" = None) -> "Slot":
        shape = tuple(self._named[name].shape)
        return Slot(totals=self, name=name, shape=shape, dtype=self.dtype(name), absolute=absolute, signed=signed)

    def buffer(self, name: str, layout: str, shape: tuple[int, ...], finish: Finish) -> Tensor:
        """Return the running buffer of a parameter in some layout, zeros at first."""
        self.asked += 1
        held = self._added_to(name)
        if layout not in held:
            device = self._named[name].device
            held[layout] = torch.zeros(shape, dtype=self.dtype(name), device=device), finish
        return held[layout][0]

    def _added_to(self, name: str) -> dict[str, tuple[Tensor, Finish]]:
        return (self._buffers if self._open is None else self._open)[name]

    def row_layout(self, name: str) -> tuple[str, tuple[int, ...], Finish]:
        """Return the layout of a buffer that is there and of which the total is a view, else the plain layout."""
        shape = self._named[name].shape
        for layout, (buffer, finish) in self._added_to(name).items():
            total = finish(buffer)
            if total.shape == shape and total.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr():
                return layout, tuple(buffer.shape), finish
        return "plain", (shape.numel(),), _same

    def empty(self) -> "Totals":
        return Totals(self._named, double=self._double, memory=self.memory, kernels=self.kernels, signed=self._signed)

    def begin(self) -> None:
        """From now on add to separate buffers, new ones at each call, until `commit` or `roll_back`."""
        self._open = {name: {} for name in self._named}

    def roll_back(self) -> None:
        self._open = None

    def commit(self) -> None:
        opened, self._open = self._open, None
        for name, layouts in (opened or {}).items():
            while layouts:
                layout, (buffer, finish) = layouts.popitem()  # given back before the next is added
                self._join(name, layout, buffer, finish)

    def _join(self, name: str, layout: str, buffer: Tensor, finish: Finish) -> None:
        held = self._buffers[name]
        if layout not in held:
            held[layout] = buffer, finish
        elif self._compensated:
            if (name, layout) not in self._lost:
                self._lost[name, layout] = torch.zeros_like(buffer)
            add_exactly(held[layout][0], self._lost[name, layout], buffer)
        else:
            held[layout][0].add_(buffer)

    def running(self) -> Iterator[Tensor]:
        """Yield the unfinished buffers."""
        return (buffer for held in self._buffers.values() for buffer, _ in held.values())

    def whole(self) -> Iterator[tuple[str, str, Tensor, Finish]]:
        """Yield name, layout, buffer and finish of each parameter, one buffer for each.

        Where kernels have added in several layouts, these become one first.
        """
        for name, held in self._buffers.items():
            if len(held) > 1:
                total = self.take(name)
                self.buffer(name, "plain", (total.numel(),), _same).copy_(total.view(-1))
            yield from ((name, layout, buffer, finish) for layout, (buffer, finish) in held.items())

    def result(self, *, last: bool = False) -> dict[str, Tensor]:
        """Return the totals, each in its parameter's shape; zeros for a parameter that nothing used."""
        return {name: self.take(name) if last else self._one(name) for name in self._named}

    def take(self, name: str) -> Tensor:
        """Return the total of one parameter, in its shape, and free its buffers."""
        total = self._one(name, last=True)
        for layout in self._buffers[name]:
            self._lost.pop((name, layout), None)
        self._buffers[name].clear()
        return total

    def _one(self, name: str, *, last: bool = False) -> Tensor:
        p, total = self._named[name], None
        for layout, (buffer, finish) in self._buffers[name].items():
            exact = buffer + self._lost[name, layout] if (name, layout) in self._lost else buffer
            part = finish(exact).reshape(p.shape)
            total = part if total is None else total + part
        if total is None:
            return torch.zeros(p.shape, dtype=self.dtype(name), device=p.device)
        if self._signed:
            return total.contiguous()
        # Sums over pairs of rows may come out below zero by rounding where all terms cancel; NaN stays NaN.
        return (total.clamp_(min=0) if last else total.clamp(min=0)).contiguous()


@final
@attrs.frozen(kw_only=True, eq=False)
class Slot:
    """Where a rule adds the per-sample gradients of one parameter."""

    totals: Totals
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    absolute: Totals | None = None
    signed: Totals | None = None
    region: Region | None = None

    def of(self, region: Region) -> "Slot":
        """Return where the gradients of a part of the parameter go."""
        return attrs.evolve(self, region=region, shape=region.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def squares_only(self) -> bool:
        return self.absolute is None and self.signed is None

    def chunks(self, samples: int, numel: int, *, bound: int = _CHUNK_CAP) -> Iterator[slice]:
        """Cut a batch so that a chunk's work stays within the memory bound."""
        on_host = self.totals.parameter(self.name).device.type == "cpu"
        bound = min(self.totals.memory, bound) if on_host else self.totals.memory
        step = max(1, min(samples, bound // max(1, numel * self.dtype.itemsize)))
        for start in range(0, samples, step):
            yield slice(start, min(start + step, samples))

    def into(self, layout: str, shape: tuple[int, ...], finish: Finish) -> SumBuffers:
        region, parameter = self.region, self.totals.parameter(self.name)
        if region is not None:
            layout, of_part = f"{layout} of {region.key}", finish
            finish = lambda buffer: region.place(of_part(buffer), parameter)  # noqa: E731
        squares, *rest = (
            None if totals is None else totals.buffer(self.name, layout, shape, finish)
            for totals in (self.totals, self.absolute, self.signed)
        )
        assert squares is not None, "always wanted"
        return SumBuffers(squares=squares, absolute=rest[0], signed=rest[1])

    def add(self, per_sample: Tensor) -> None:
        """Add per-sample gradients, shape (n, *shape)."""
        flat = per_sample.to(self.dtype).reshape(per_sample.shape[0], self.numel)
        into = self.into("plain", (self.numel,), _same)
        if len(flat) == 1 or (len(flat) <= _FEW and self.numel >= _LARGE):
            for row in flat:
                into.add_one(row)
        else:
            into.add(flat)

    def add_rows(self, per_row: Tensor, where: Tensor) -> None:
        """Add gradients of single rows of the parameter."""
        wider = per_row.to(self.dtype)
        layout, shape, finish = ("plain", (self.numel,), _same) if self.region else self.totals.row_layout(self.name)
        into = self.into(layout, shape, finish)
        for total, terms in ((into.squares, wider.square), (into.absolute, wider.abs), (into.signed, lambda: wider)):
            if total is not None:
                finish(total).view(self.shape).index_add_(0, where, terms())

    def by_kernel(self, operands: KernelOperands) -> bool:
        """Add a layer's gradients by the kernel of a plugin; False when none takes it."""
        kernels = self.totals.kernels
        return kernels is not None and kernels.add(operands, self.into, squares_only=self.squares_only)

    def run(self, plans: Iterable[KernelPlan]) -> None:
        """Run the first plan that adds everything that is wanted."""
        plan = next(plan for plan in plans if self.squares_only or not plan.squares_only)
        plan.run(self.into(plan.name, plan.shape, plan.finish))


def add_exactly(total: Tensor, lost: Tensor, term: Tensor) -> None:
    """Add so that ``total + lost`` stays exact to the rounding of ``lost``: Knuth's two-sum, in place."""
    step = _TWO_SUM.get(total.device.type, _ON_DEVICE)
    for start in range(0, total.numel(), step):
        t, low, x = (v.view(-1)[start : start + step] for v in (total, lost, term))
        sum_ = t + x
        back = sum_ - t
        low.add_((t - (sum_ - back)).add_(x.sub_(back)))
        t.copy_(sum_)


def _same(buffer: Tensor) -> Tensor:
    return buffer


@final
class BatchGradients:
    """Takes Σ_{i∈b} g_i of each batch b, and adds it and its square up when the batch ends."""

    def __init__(self, make: Callable[[], Totals]) -> None:
        self.batch = make()
        """Σ_i g_i of the current batch; what the rules add to."""
        self._signed, self._squares = make(), make()

    def end_batch(self, size: int) -> None:
        """Add the sum of a batch and its square to the pass, and start the next at zero."""
        for name, layout, batch, finish in self.batch.whole():
            self._signed.buffer(name, layout, tuple(batch.shape), finish).add_(batch)
            self._squares.buffer(name, layout, tuple(batch.shape), finish).addcmul_(batch, batch, value=1 / size)
            batch.zero_()

    def signed(self) -> dict[str, Tensor]:
        """Return Σ_i g_i of the pass, and free the buffers."""
        return self._signed.result(last=True)

    def squares(self) -> dict[str, Tensor]:
        """Return Σ_b n_b (1/n_b Σ_{i∈b} g_i)² of the pass, and free the buffers."""
        return self._squares.result(last=True)


@final
@attrs.frozen(kw_only=True, eq=False)
class Sums:
    """What is added up for one group of samples."""

    squares: Totals
    absolute: Totals | None = None
    signed: Totals | None = None
    _slots: dict[str, Slot] = attrs.field(factory=dict, init=False)

    def slot(self, name: str) -> Slot:
        if name not in self._slots:
            self._slots[name] = self.squares.slot(name, absolute=self.absolute, signed=self.signed)
        return self._slots[name]

    def receive(self, name: str, per_sample: Tensor) -> None:
        self.slot(name).add(per_sample)

    def all(self) -> Iterator[Totals]:
        yield from (totals for totals in (self.squares, self.absolute, self.signed) if totals is not None)


@final
@attrs.frozen(kw_only=True, eq=False)
class Part:
    """Neighbouring samples of a batch that belong to one group; of some parameters only, where ``only`` names them."""

    rows: slice
    sums: Sums
    take: Callable[[str, Tensor], None] | None = None
    only: frozenset[str] | None = None

    def wants(self, names: frozenset[str]) -> bool:
        return self.only is None or bool(self.only & names)

    def complete(self, name: str) -> None:
        """Hand out the total of a parameter, when nothing more will be added to it."""
        if self.take is not None and self.wants(frozenset({name})):
            self.take(name, self.sums.squares.take(name))


@final
class GroupTotals:
    """One `Sums` for each group; what is added between `begin` and `commit` can be taken out again."""

    def __init__(
        self, make: Callable[[], Totals], *, absolute: bool = False, gradients: BatchGradients | None = None
    ) -> None:
        self._make = make
        self.pattern = make()
        """An empty one, for dtypes and shapes."""
        self._absolute = absolute
        self.gradients = gradients
        self._groups: dict[Hashable, Sums] = {}
        self._touched: set[Hashable] = set()
        self._open: list[Totals] = []
        self.counts: Counter[Hashable] = Counter()
        """Samples in each group."""

    def parts(self, keys: Sequence[Hashable]) -> list[Part]:
        """Cut samples into parts: one for each run of equal keys."""
        found, begin = [], 0
        for end in range(1, len(keys) + 1):
            if end == len(keys) or keys[end] != keys[begin]:
                found.append(Part(rows=slice(begin, end), sums=self._sums(keys[begin])))
                begin = end
        return found

    def begin(self, parts: Sequence[Part]) -> None:
        self._open = list(dict.fromkeys(totals for part in parts for totals in part.sums.all()))
        for totals in self._open:
            totals.begin()

    def commit(self, keys: Sequence[Hashable]) -> None:
        """Make what was added for these samples final."""
        for totals in self._open:
            totals.commit()
        self._open = []
        self.counts.update(keys)

    def roll_back(self) -> None:
        for totals in self._open:
            totals.roll_back()
        self._open = []

    @property
    def opened(self) -> bool:
        """Whether what is being added can still be rolled back."""
        return bool(self._open)

    def trial(self, rows: slice, take: Callable[[str, Tensor], None], *, only: frozenset[str]) -> Part:
        """Return a part whose totals are handed out, parameter by parameter, and not kept."""
        return Part(rows=rows, sums=Sums(squares=self.pattern.empty()), take=take, only=only)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a parameter's gradients are squared and added."""
        return self.pattern.dtype(name)

    def end_batch(self, size: int) -> None:
        if self.gradients is not None:
            self.gradients.end_batch(size)

    def running(self) -> Iterator[Tensor]:
        """Yield the buffers of the groups that changed since the last call."""
        for key in self._touched:
            yield from self._groups[key].squares.running()
        self._touched.clear()

    def result(self, *, last: bool = False) -> dict[str, Tensor]:
        if list(self._groups) == [ALL]:
            return self._groups[ALL].squares.result(last=last)
        total: dict[str, Tensor] = {}
        for sums in self._groups.values():
            accumulate(total, sums.squares.result())
        return total

    def group(self, key: Hashable) -> dict[str, Tensor]:
        return self._groups[key].squares.result(last=True)

    def absolute(self) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for sums in self._groups.values():
            assert sums.absolute is not None, "asked for at the start"
            accumulate(total, sums.absolute.result(last=True))
        return total

    def _sums(self, key: Hashable) -> Sums:
        self._touched.add(key)
        if key not in self._groups:
            self._groups[key] = Sums(
                squares=self._make(),
                absolute=self._make() if self._absolute else None,
                signed=self.gradients.batch if self.gradients is not None else None,
            )
        return self._groups[key]


def accumulate(held: dict[str, Tensor], terms: Mapping[str, Tensor]) -> None:
    """Add terms in place; the first of each name is kept as it is."""
    for name, term in terms.items():
        held[name] = held[name].add_(term) if name in held else term
