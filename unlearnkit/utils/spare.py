"""Memory for old values: asked for in large pages, and offered to the system when it is done with, not given back.

What is written first to a page that the system has yet to find and to clear costs several times as much as writing
to it again, so the next edit gets the memory of the last one: all of it, if the system had no use for it in between.
"""

import contextlib
import mmap
import threading
import weakref
from typing import final

import numpy as np

LINE = 64
"""Bytes of a line of the cache."""
SHARE = 1 << 21
"""Bytes of a large page."""
# What is asked for is not taken until it is written to, so what is never used costs nothing.
_LEAST = 1 << 24
_MOST_SPARE = 1 << 30
_RESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Linux's; not counted as if all of it were going to be used
_LARGE_PAGES = hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MADV_FREE")  # Linux
_spare: list[mmap.mmap] = []
_lock = threading.RLock()  # what is given back by the garbage collector may come while some is asked for


@final
class Memory:
    """Some memory, offered to the system when nobody holds this any more."""

    def __init__(self, size: int) -> None:
        if _LARGE_PAGES:
            pages = _pages(max(size, _LEAST))
            self.array = np.frombuffer(pages, dtype=np.uint8)
            weakref.finalize(self, _offer, pages).atexit = False
        else:
            room = np.empty(size + LINE, dtype=np.uint8)
            self.array = room[-room.ctypes.data % LINE :]
        self.address: int = self.array.ctypes.data


@final
class Arena:
    """Memory that threads use up from the front, each a share of it at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._memory: Memory | None = None
        self._state = np.zeros(0, dtype=np.int64)

    def room(self, size: int) -> tuple[Memory, int]:
        """Return memory with so much room."""
        # What is left of a share and too small for the next part stays unused.
        wanted = size + size // 7 + self.threads * SHARE
        if self._memory is None or len(self._memory.array) - self._state[2] < wanted:
            self._memory = Memory(wanted)
            self._state = np.zeros(3 + 2 * self.threads, dtype=np.int64)
            self._state[:2] = self._memory.address, SHARE
        return self._memory, self._state.ctypes.data


def _pages(size: int) -> mmap.mmap:
    with _lock:
        for place, pages in enumerate(_spare):
            if len(pages) >= size:
                return _spare.pop(place)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _RESERVED)
    with contextlib.suppress(OSError):  # a kernel without them: small pages do
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def _offer(pages: mmap.mmap) -> None:
    with _lock:
        if sum(map(len, _spare)) + len(pages) <= _MOST_SPARE:
            with contextlib.suppress(OSError):
                pages.madvise(mmap.MADV_FREE)
            _spare.append(pages)
