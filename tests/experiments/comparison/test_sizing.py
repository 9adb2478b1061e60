"""The number of processes, and their memory."""

import os

import pytest
import torch
from torch import nn

from unlearnkit.experiments.comparison.compare import need_of, of_ranks, sizing
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.memory import MIB, free_memory, peak_memory, reset_peak

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def choose(*, free, need=100 * MIB, units=10**6, threads=1, device=CPU, jobs=None):
    return sizing(jobs, threads=threads, units=units, device=device, need=(need, "guessed"), free=free)


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("given", "jobs"),
    [
        ({"free": 10**5 * MIB}, 8),
        ({"free": 10**5 * MIB, "threads": 3}, 2),
        ({"free": 10**5 * MIB, "threads": 9}, 1),
        ({"free": 400 * MIB}, 3),  # nine tenths of it hold three
        ({"free": 10 * MIB}, 1),
        ({"free": 10**5 * MIB, "units": 2}, 2),
        ({"free": 10**5 * MIB, "device": GPU}, 1),
        ({"free": 10 * MIB, "jobs": 5}, 5),
    ],
)
def test_the_choice(eight_cores, given, jobs):
    assert choose(**given).jobs == jobs


def test_choice_of_processes_has_a_reason(eight_cores):
    assert choose(free=400 * MIB).why == (
        "3 processes of 1 thread: 8 cores, 400 MiB free, 100 MiB a process (guessed), 1000000 units of work; 5 cores "
        "idle (comparison.threads uses them inside a trial)"
    )
    assert "share one cuda device" in choose(free=400 * MIB, device=GPU).why


def test_unknown_memory_is_handled(monkeypatch):
    monkeypatch.setattr("unlearnkit.experiments.comparison.compare.free_memory", lambda: None)
    found = choose(free=None)
    assert found.jobs == 1
    assert "does not say how much memory is free" in found.why


def test_estimated_memory_grows_with_the_model_and_uses_measured_peaks():
    small, large = (need_of(nn.Linear(n, 2**10), retrained=3)[0] for n in (1, 2**10))
    assert large - small == pytest.approx(15 * 4 * 2**20, rel=0.01)
    assert need_of(nn.Linear(1, 1), retrained=3, peaks=[100.0, 300.0]) == (
        300 * MIB,
        "the highest peak of the trials that are done",
    )


def test_peak_memory_is_reset_for_each_block():
    def took(size):
        reset_peak(CPU)
        block = bytearray(size * MIB)
        block[::4096] = b"x" * len(block[::4096])
        return peak_memory(CPU).host / MIB

    low, high, low_again = took(1), took(200), took(1)
    assert 150 < high - low < 260
    assert high - low_again > 150 or not os.access("/proc/self/clear_refs", os.W_OK)


def test_free_memory_is_at_most_the_total():
    free = free_memory()
    assert free is None or 0 <= free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_processes_of_torchrun_start_no_others():
    chosen = of_ranks(None, ranks=4, threads=2)
    assert (chosen.jobs, chosen.why) == (1, "4 processes of 2 threads, as torchrun has started")
    with pytest.raises(ConfigurationError, match="expected none with the 4 processes of torchrun, saw 3"):
        of_ranks(3, ranks=4, threads=2)
