"""One compiled pass over many parameters, on as many threads as torch has."""

from collections.abc import Sequence
from typing import Any, final

import attrs
import numpy as np
import torch

from unlearnkit.models.packed import Packed, mask_bytes
from unlearnkit.models.undo_log import UndoLog
from unlearnkit.unlearning.fused.arrays import Arrays
from unlearnkit.unlearning.fused.kernel import PIECE, Kernel
from unlearnkit.utils.spare import LINE, Arena

_PIECE = PIECE
_CALL = 1 << 12  # pieces for each call: room for as many old values is set aside, and Ctrl-C waits for its end
_PIECES_PER_THREAD = 8  # below which another thread is not worth its start
_ASKED_PER_THREAD = 8  # pieces between two calls of torch: what is read twice and the answers stay in the caches
_JOB = [(name, "u8") for name in ("theta", "forget", "reference")]
_JOB += [("forget_count", "f8"), ("reference_count", "f8"), ("length", "i8"), ("first", "i8")]


@final
@attrs.frozen(kw_only=True)
class Passage:
    """A kernel, and what becomes of its results."""

    kernel: Kernel
    numbers: tuple[float, ...]
    arena: Arena
    journal: UndoLog | None = None
    write: bool = True

    def run(self, arrays: Sequence[Arrays]) -> list[int | None]:
        """Apply the kernel."""
        lengths = np.array([a.tensors[0].numel() for a in arrays])
        ends = np.cumsum(-(-lengths // _PIECE))
        first = np.concatenate([[0], ends[:-1]])
        jobs = np.array([(*a.row, at) for a, at in zip(arrays, first.tolist(), strict=True)], dtype=_JOB)
        outcomes = np.zeros((ends[-1], 3), dtype=np.int64)
        parts = []
        for start in range(0, len(outcomes), _CALL):
            span = start, min(start + _CALL, len(outcomes))
            if self.journal is None:
                self._call(jobs, outcomes, span, None)
            else:
                parts.append(self._kept(arrays, first, jobs, outcomes, span))
        counts = np.add.reduceat(outcomes, first)[:, 1:].tolist()
        for number in (n for n, (_, odd) in enumerate(counts) if odd):
            for part in parts:
                part.undo_target(number)
        return [None if odd else kept for kept, odd in counts]

    def _kept(self, arrays: Sequence[Arrays], first: Any, jobs: Any, outcomes: Any, span: tuple[int, int]) -> Packed:
        assert self.journal is not None
        size = arrays[0].tensors[0].element_size()
        memory, state = self.arena.room((span[1] - span[0]) * (mask_bytes(_PIECE) + _PIECE * size + LINE))
        entry = Packed(targets=arrays, first=first, each=_PIECE, outcomes=outcomes, span=span, memory=memory)
        self.journal.add(entry)
        self._call(jobs, outcomes, span, state)
        return entry

    def _call(self, jobs: Any, outcomes: Any, span: tuple[int, int], journal: int | None) -> None:
        numbers = np.array(self.numbers or (0.0,))
        threads = min(self.arena.threads, -(-(span[1] - span[0]) // _PIECES_PER_THREAD))
        step = _ASKED_PER_THREAD * threads if self.kernel.asked else span[1] - span[0]
        # Zeros: a place that belongs to no weight is asked about, too.
        answers = [torch.zeros(step * _PIECE, dtype=asked.dtype) for asked in self.kernel.asked]
        given = np.array([answer.data_ptr() for answer in answers] or [0], dtype=np.uint64)
        for start in range(*span, step):
            what = jobs.ctypes.data, len(jobs), start, min(start + step, span[1]), _PIECE, numbers.ctypes.data
            for asked, answer in zip(self.kernel.asked, answers, strict=True):
                asked.numbers(*what, given.ctypes.data, answer.data_ptr(), threads)
                asked.question.answer(answer)
            self.kernel.edit(*what, given.ctypes.data, journal, outcomes.ctypes.data, self.write, threads)
