"""One compiled pass over one parameter, on as many threads as torch has."""

from concurrent.futures import Executor, wait
from typing import Any, final

import attrs
import numpy as np
from torch import Tensor

from unlearnkit.averaged import Averaged
from unlearnkit.fused.arrays import Arrays
from unlearnkit.fused.kernel import Kernel
from unlearnkit.journal import Journal
from unlearnkit.packed import Arena
from unlearnkit.parameters import bits

_STEP = 1 << 20  # weights for each call: room for as many old values is set aside
_SPAN = 1 << 17  # weights below which another thread is not worth its start, and of which every span is a multiple


@final
@attrs.frozen(kw_only=True, eq=False)
class Passage:
    """A kernel, what it is applied to, and what becomes of the result.

    Attributes:
        kernel: The compiled rule.
        numbers: Its constants, float64.
        arrays: What it reads; the weights are overwritten when ``write`` says so.
        journal: Keeps what is overwritten, unless it is None.
        write: False only counts.
    """

    kernel: Kernel
    numbers: np.ndarray[Any, np.dtype[np.float64]]
    arrays: Arrays
    journal: Journal | None = None
    write: bool = True

    def run(self, arenas: list[Arena], executor: Executor | None) -> int | None:
        """Apply the kernel.

        Args:
            arenas: One for each thread.
            executor: Of the other threads; None when there are none.

        Returns:
            How many weights have other bits than before. None when torch must do it: a result is not finite, or one
            that only torch can tell. What is in the journal is then undone.
        """
        mark = 0 if self.journal is None else len(self.journal)
        spans = _spans(self.arrays.theta.numel(), 1 if executor is None else len(arenas))
        if executor is None or len(spans) == 1:
            counts = [self._span(*span, arenas[0]) for span in spans]
        else:
            counts = self._shared(spans, arenas, executor)
        changed = [count for count in counts if count is not None]
        if len(changed) == len(counts):
            return sum(changed)
        if self.journal is not None:
            self.journal.undo(since=mark)
        return None

    def _shared(self, spans: list[tuple[int, int]], arenas: list[Arena], executor: Executor) -> list[int | None]:
        others = [executor.submit(self._span, *span, arena) for span, arena in zip(spans[1:], arenas[1:], strict=False)]
        try:
            count = self._span(*spans[0], arenas[0])
        finally:
            wait(others)  # whatever happens, nobody writes after this
        return [count, *(other.result() for other in others)]

    def _span(self, start: int, stop: int, arena: Arena) -> int | None:
        changed = 0
        for at in range(start, stop, _STEP):
            end = min(at + _STEP, stop)
            counted, done = self._step(at, end, arena)
            if done < end - at:
                return None
            changed += counted
        return changed

    def _step(self, start: int, stop: int, arena: Arena) -> tuple[int, int]:
        if self.journal is None:
            progress = np.zeros(2, dtype=np.int64)
            return self._call(start, stop, None, None, progress), int(progress[0])
        entry = arena.open(bits(self.arrays.theta[start:stop]))
        self.journal.add(entry)
        changed = self._call(start, stop, entry.mask, entry.values, entry.progress)
        arena.close(entry)
        return changed, int(entry.progress[0])

    def _call(self, start: int, stop: int, mask: int | None, values: int | None, progress: np.ndarray[Any, Any]) -> int:
        forget, reference = self.arrays.forget, self.arrays.reference
        return self.kernel(
            stop - start,
            _address(self.arrays.theta, start),
            _address(forget.total, start),
            None if reference is None else _address(reference.total, start),
            _divisor(forget),
            1.0 if reference is None else _divisor(reference),
            self.numbers.ctypes.data,
            mask,
            values,
            progress.ctypes.data,
            self.write,
        )


def _spans(length: int, threads: int) -> list[tuple[int, int]]:
    each = -(-length // (threads * _SPAN)) * _SPAN
    return [(start, min(start + each, length)) for start in range(0, length, each)]


def _address(t: Tensor, start: int) -> int:
    return t.data_ptr() + start * t.element_size()


def _divisor(mean: Averaged) -> float:
    return 1.0 if mean.count is None else float(mean.count)
