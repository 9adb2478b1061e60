"""Old values, packed: a bit for each weight that says whether it changed, and the values of those that did."""

import contextlib
import mmap
from typing import Any, final

import attrs
import numpy as np
import torch
from torch import Tensor

# Memory that is asked for is not taken until it is written to, so what is never used costs nothing.
_CHUNK = 16 << 20
_LINE = 64  # bytes: a line of the cache, and how far behind the last value a kernel may write


@final
@attrs.frozen(kw_only=True, eq=False)
class Packed:
    """Places of one tensor that compiled code overwrites, remembered by it as it goes.

    Attributes:
        target: Integers, contiguous, one dimension.
        memory: Bytes: the bits of the places, then the values.
        progress: Written by the code before it overwrites: up to where the bits hold, and how many values there are.
    """

    target: Tensor
    memory: np.ndarray[Any, np.dtype[np.uint8]]
    progress: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def nbytes(self) -> int:
        """How much memory it takes; nothing when nothing changed."""
        values = int(self.progress[1])
        return mask_bytes(self.target.numel()) + values * self.target.element_size() if values else 0

    @property
    def mask(self) -> int:
        """The address of the bits."""
        return self.memory.ctypes.data

    @property
    def values(self) -> int:
        """The address of the values."""
        return self.mask + mask_bytes(self.target.numel())

    def undo(self) -> None:
        """Put the old bits back; a second time changes nothing."""
        length, count = (int(n) for n in self.progress)
        if not count:
            return
        start, size = mask_bytes(self.target.numel()), self.target.element_size()
        places = np.flatnonzero(np.unpackbits(self.memory[:start], count=length, bitorder="little"))
        values = self.memory[start : start + count * size].view(f"i{size}")
        self.target[torch.from_numpy(places)] = torch.from_numpy(values)


@final
class Arena:
    """Memory for one thread's packed values, used up from the front."""

    def __init__(self) -> None:
        self._chunk, self._at = np.empty(0, dtype=np.uint8), 0

    def open(self, target: Tensor) -> Packed:
        """Return an entry with room for all of a tensor.

        Args:
            target: Integers, contiguous, one dimension.

        Returns:
            It; nothing may be opened until it is closed.
        """
        room = mask_bytes(target.numel()) + target.nbytes + _LINE
        if len(self._chunk) - self._at < room:
            self._chunk, self._at = _memory(max(_CHUNK, room)), 0
        memory = self._chunk[self._at : self._at + room]
        return Packed(target=target, memory=memory, progress=np.zeros(2, dtype=np.int64))

    def close(self, entry: Packed) -> None:
        """Keep what an entry has used; the rest is free.

        Args:
            entry: The one that was opened last.
        """
        self._at += -(-entry.nbytes // _LINE) * _LINE


def mask_bytes(length: int) -> int:
    """Return the size of the bits for so many places, up to whole lines of the cache.

    Args:
        length: A number of weights.

    Returns:
        A number of bytes.
    """
    return -(-length // (8 * _LINE)) * _LINE


def _memory(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return memory in large pages where there are any: what is written first to a page costs more than the writing."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, dtype=np.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: small pages do
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype=np.uint8)
