"""All that is added up on one pass: squares for each group of samples and, on request, Σ|g| and batch gradients."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.fisher.engine.batch_gradients import BatchGradients
from unlearnkit.importance.fisher.engine.totals import Slot, Totals

ALL = "all samples"


@final
@attrs.frozen(kw_only=True, eq=False)
class Sums:
    """What is added up for one group of samples."""

    squares: Totals
    absolute: Totals | None = None
    signed: Totals | None = None

    def slot(self, name: str) -> Slot:
        """Return the place for the per-sample gradients of one parameter."""
        return self.squares.slot(name, absolute=self.absolute, signed=self.signed)

    def receive(self, name: str, per_sample: Tensor) -> None:
        """Add per-sample gradients of one parameter: shape (n, *shape)."""
        self.slot(name).add(per_sample)

    def empty(self) -> "Sums":
        """Return sums of the same kind with nothing in them."""
        absolute, signed = (None if t is None else t.empty() for t in (self.absolute, self.signed))
        return Sums(squares=self.squares.empty(), absolute=absolute, signed=signed)

    def add(self, other: "Sums") -> None:
        """Add the sums of other samples, which give their buffers back."""
        for mine, theirs in zip(self.all(), other.all(), strict=True):
            mine.add(theirs.result(last=True))

    def all(self) -> Iterator[Totals]:
        """Yield what there is."""
        yield from (totals for totals in (self.squares, self.absolute, self.signed) if totals is not None)


@final
@attrs.frozen(kw_only=True, eq=False)
class Part:
    """Neighbouring samples of a batch that belong to one group."""

    rows: slice
    sums: Sums
    take: Callable[[str, Tensor], None] | None = None

    def complete(self, name: str) -> None:
        """Say that nothing more will be added for a parameter."""
        if self.take is not None:
            self.take(name, self.sums.squares.take(name))

    def of(self, tensor: Tensor) -> Tensor:
        """Cut the rows out of a tensor whose dimension 0 is the sample; a view."""
        return tensor[self.rows]


@final
class Ledger:
    """One `Sums` for each group; what is added between `begin` and `commit` can be taken out again."""

    def __init__(
        self, make: Callable[[], Totals], *, absolute: bool = False, gradients: BatchGradients | None = None
    ) -> None:
        self._make = make
        self._pattern = make()
        self._absolute = absolute
        self.gradients = gradients
        self._groups: dict[Hashable, Sums] = {}
        self._touched: set[Hashable] = set()
        self._open: list[Totals] = []
        self.counts: Counter[Hashable] = Counter()
        """How many samples each group has."""

    def parts(self, keys: Sequence[Hashable]) -> list[Part]:
        """Cut samples into parts: one for each run of equal keys."""
        found, begin = [], 0
        for end in range(1, len(keys) + 1):
            if end == len(keys) or keys[end] != keys[begin]:
                found.append(Part(rows=slice(begin, end), sums=self._sums(keys[begin])))
                begin = end
        return found

    def begin(self, parts: Sequence[Part]) -> None:
        """Add to these parts apart from now on; see `Totals.begin`."""
        self._open = list(dict.fromkeys(totals for part in parts for totals in part.sums.all()))
        for totals in self._open:
            totals.begin()

    def commit(self, keys: Sequence[Hashable]) -> None:
        """Take over what was added since `begin`, or without it, for these samples."""
        for totals in self._open:
            totals.commit()
        self._open = []
        self.counts.update(keys)

    def roll_back(self) -> None:
        """Forget what was added since `begin`."""
        for totals in self._open:
            totals.roll_back()
        self._open = []

    @property
    def opened(self) -> bool:
        """Whether what is being added can still be taken out."""
        return bool(self._open)

    def trial(self, samples: int, take: Callable[[str, Tensor], None]) -> Part:
        """Return a place for squares that do not count, which are taken out parameter by parameter."""
        return Part(rows=slice(0, samples), sums=Sums(squares=self._pattern.empty()), take=take)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype in which a parameter's gradients are squared and added."""
        return self._pattern.dtype(name)

    def end_batch(self, size: int) -> None:
        """Say that a batch of so many samples has ended."""
        if self.gradients is not None:
            self.gradients.end_batch(size)

    def running(self, *, largest: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the buffers of the groups that were added to since the last look at everything."""
        for key in self._touched:
            yield from self._groups[key].squares.running(largest=largest)
        if largest is None:
            self._touched.clear()

    def result(self, *, last: bool = False) -> dict[str, Tensor]:
        """Return the squares of all groups together; see `Totals.result`."""
        if list(self._groups) == [ALL]:
            return self._groups[ALL].squares.result(last=last)
        total: dict[str, Tensor] = {}
        for sums in self._groups.values():
            accumulate(total, sums.squares.result())
        return total

    def group(self, key: Hashable) -> dict[str, Tensor]:
        """Return the squares of one group and give its buffers back."""
        return self._groups[key].squares.result(last=True)

    def absolute(self) -> dict[str, Tensor]:
        """Return Σ|g| over all groups and give the buffers back."""
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
    """Add in place to tensors of our own; the first are taken over."""
    for name, term in terms.items():
        held[name] = held[name].add_(term) if name in held else term
