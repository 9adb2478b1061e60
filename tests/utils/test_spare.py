"""Memory of old values: used again when nobody holds it, and never before."""

import ctypes
import mmap
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from unlearnkit.utils import spare
from unlearnkit.utils.spare import LINE, SHARE, Arena, Memory


@pytest.fixture(autouse=True)
def _nothing_spare(monkeypatch):
    monkeypatch.setattr(spare, "_spare", [])


def test_it_starts_a_line_and_has_the_room(monkeypatch):
    for large in (spare._LARGE_PAGES, False):
        monkeypatch.setattr(spare, "_LARGE_PAGES", large)
        memory = Memory(1000)
        assert memory.address % LINE == 0
        assert len(memory.array) >= 1000
        memory.array[:1000] = 7
        assert ctypes.string_at(memory.address, 1000) == b"\7" * 1000


@pytest.mark.skipif(not spare._LARGE_PAGES, reason="this system takes no memory back on demand")
class TestSpare:
    def test_what_nobody_holds_is_used_again(self):
        memory = Memory(1000)
        address = memory.address
        del memory
        assert len(spare._spare) == 1
        assert Memory(10).address == address

    def test_what_is_held_is_not(self):
        one, other = Memory(1000), Memory(1000)
        assert one.address != other.address

    def test_what_is_too_small_is_not(self):
        small = Memory(1000)
        del small
        large = Memory(spare._LEAST + 1)
        assert len(large.array) > spare._LEAST
        assert len(spare._spare) == 1

    def test_two_threads_never_hold_the_same(self):
        def work(number):
            for turn in range(200):
                memory = Memory(1000 + turn % 3)
                memory.array[:1000] = number
                time.sleep(0)
                assert bool((memory.array[:1000] == number).all())

        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as executor:
                list(executor.map(work, range(4)))
        finally:
            sys.setswitchinterval(before)

    def test_it_is_bounded(self, monkeypatch):
        monkeypatch.setattr(spare, "_MOST_SPARE", spare._LEAST)
        one, other = Memory(1), Memory(1)
        del one, other
        assert len(spare._spare) == 1

    def test_a_system_without_large_pages(self, monkeypatch):
        class Small(mmap.mmap):
            def madvise(self, *_):
                raise OSError("no large pages")

        monkeypatch.setattr("mmap.mmap", Small)
        assert len(Memory(5).array) == spare._LEAST


def test_an_arena_has_room_until_its_shares_are_used_up():
    arena = Arena(2)
    memory, state = arena.room(1000)
    known = np.ctypeslib.as_array((ctypes.c_int64 * 7).from_address(state))
    assert known.tolist() == [memory.address, SHARE, 0, 0, 0, 0, 0]
    known[2] = len(memory.array) - 1000 - 1000 // 7 - 2 * SHARE
    assert arena.room(1000) == (memory, state)
    known[2] += 1
    other, state = arena.room(1000)
    assert other is not memory
    assert ctypes.c_int64.from_address(state).value == other.address


def test_an_arena_for_much():
    memory, _ = Arena(3).room(1 << 25)
    assert len(memory.array) >= (1 << 25) * 8 // 7 + 3 * SHARE
