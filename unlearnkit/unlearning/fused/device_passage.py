"""One pass over many parameters on a device, in batches of which the next one runs while the last one is counted."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.models.parameters import bits
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.fused.arrays import Arrays
from unlearnkit.unlearning.fused.device_kernel import UNIT, DeviceKernel, Scratch, blocks

# Bytes of weights in a batch, for as much memory is set aside for old values, twice; a host waits once for each batch.
_BATCH = 1 << 28


@final
@attrs.frozen(eq=False)
class Segment:
    """Weights of one parameter that are edited by one start of the kernel."""

    number: int
    arrays: tuple[Tensor, ...]
    first: int


@final
class Overwritten:
    """What one batch overwrites, remembered by the kernel as it goes."""

    def __init__(self, kernel: DeviceKernel, segments: Sequence[Segment], scratch: Scratch) -> None:
        self._kernel, self._segments = kernel, tuple(segments)
        self._scratch: Scratch | None = scratch

    @property
    def nbytes(self) -> int:
        """How much memory it takes; nothing when nothing changed."""
        return 0 if self._scratch is None else self._scratch.nbytes

    def undo(self) -> None:
        """Put the old bits back; a second time changes nothing."""
        if self._scratch is None:
            return
        device = self._scratch.values.device
        with current(device):
            if device.type == "cuda":
                torch.cuda.synchronize()  # whichever stream the edit was on
            for segment in self._segments:
                self._put_back(segment, self._scratch)

    def undo_target(self, number: int) -> None:
        """Put the old bits of one parameter back, and forget them."""
        mine = [s for s in self._segments if s.number == number]
        if self._scratch is not None:
            for segment in mine:
                self._put_back(segment, self._scratch)
        self._segments = tuple(s for s in self._segments if s.number != number)
        if not self._segments:
            self._scratch = None

    def _put_back(self, segment: Segment, scratch: Scratch) -> None:
        theta = segment.arrays[0]
        self._kernel.undo(theta, first=segment.first, scratch=scratch)
        if not theta.is_inference():
            torch.autograd.graph.increment_version(theta)

    def keep(self, kept: int) -> None:
        """Give back the memory that was not needed."""
        if self._scratch is not None:
            values = self._scratch.values[:kept].clone() if kept else None
            # At once: an interrupt before or after this line can be undone.
            self._scratch = None if values is None else attrs.evolve(self._scratch, values=values)


@final
@attrs.frozen(eq=False)
class _Started:
    """A batch that the device works on."""

    segments: Sequence[Segment]
    entry: Overwritten | None
    outcomes: Tensor
    wait: Callable[[], None]


@final
@attrs.frozen(kw_only=True)
class DevicePassage:
    """A kernel, and what becomes of its results."""

    kernel: DeviceKernel
    numbers: tuple[float, ...]
    journal: UndoLog | None = None
    write: bool = True

    def run(self, arrays: Sequence[Arrays]) -> list[int | None]:
        """Apply the kernel."""
        counts: list[int] = [0] * len(arrays)
        failed: set[int] = set()
        entries = []
        with current(arrays[0].device):
            for batch in _one_ahead(self._started(arrays)):
                batch.wait()
                total, *outcomes = batch.outcomes.tolist()
                if batch.entry is not None:
                    batch.entry.keep(total)
                    entries.append(batch.entry)
                for segment, changed, odd in zip(batch.segments, outcomes[::2], outcomes[1::2], strict=True):
                    counts[segment.number] += changed
                    if odd:
                        failed.add(segment.number)
            for number in failed:
                for entry in entries:
                    entry.undo_target(number)
        return [None if number in failed else count for number, count in enumerate(counts)]

    def _started(self, arrays: Sequence[Arrays]) -> Iterator[_Started]:
        """Start one batch after the other."""
        flat = [(bits(theta), *totals) for theta, *totals in (a.flat for a in arrays)]
        divisors = [divisor for a in arrays for divisor in a.divisors]
        constants = torch.tensor([*divisors, *(self.numbers or (0.0,))], dtype=torch.float64, device=arrays[0].device)
        for batch in cut([len(theta) for theta, *_ in flat], _BATCH // flat[0][0].element_size()):
            segments, first = [], 0
            for number, begin, end in batch:
                segments.append(Segment(number, tuple(t[begin:end] for t in flat[number]), first))
                first += blocks(end - begin)
            yield self._start(segments, first, constants, len(divisors))

    def _start(self, segments: Sequence[Segment], size: int, constants: Tensor, divisors: int) -> _Started:
        outcomes = torch.zeros(1 + 2 * len(segments), dtype=torch.int32, device=constants.device)
        scratch = entry = None
        if self.journal is not None:
            weights = sum(len(s.arrays[0]) for s in segments)
            scratch = Scratch.of(segments[0].arrays[0], weights=weights, blocks=size)
            entry = Overwritten(self.kernel, segments, scratch)
            self.journal.add(entry)
        for row, segment in enumerate(segments):
            self.kernel.edit(
                segment.arrays, divisors=constants[2 * segment.number :], numbers=constants[divisors:],
                outcomes=outcomes, row=row, first=segment.first, scratch=scratch, write=self.write,
            )  # fmt: skip
        here = outcomes.to("cpu", non_blocking=True)
        return _Started(segments, entry, here, _until_now(constants.device))


def cut(lengths: Sequence[int], limit: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut parameters into segments, and put these into batches.

    Example:
        >>> list(cut([40, 5, 100], 64))
        [[(0, 0, 32), (0, 32, 40), (1, 0, 5), (2, 0, 16)], [(2, 16, 80)], [(2, 80, 96), (2, 96, 100)]]
    """
    batch: list[tuple[int, int, int]] = []
    room = limit
    for number, length in enumerate(lengths):
        begin = 0
        while begin < length:
            if room < UNIT:
                yield batch
                batch, room = [], limit
            size = min(length - begin, room)
            size -= size % UNIT if size > UNIT else 0
            batch.append((number, begin, begin + size))
            begin, room = begin + size, room - size
    if batch:
        yield batch


def current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a device the one on which kernels are started."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _until_now(device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return lambda: None
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize  # type: ignore[no-any-return]


def _one_ahead(batches: Iterator[_Started]) -> Iterator[_Started]:
    """Yield each batch after the next one has been started."""
    last = next(batches)
    for batch in batches:
        yield last
        last = batch
    yield last
