"""Peak memory of a call, counted by the allocators."""

import tracemalloc

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


def peak(run):
    """The most bytes that torch's CPU allocator held at one time during a call, beyond those held before it.

    Memory maps of files are in it, unless `uncounted_maps` was called.
    """
    return peak_and_rest(run)[0]


def peak_and_rest(run):
    """The same, and how many more bytes than before it holds after the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, held


def uncounted_maps(monkeypatch):
    """Exclude memory maps of safetensors from the counter: the system can drop their pages."""

    def from_file(filename, shared=False, nbytes=0):
        assert not shared
        return torch.from_numpy(np.memmap(filename, dtype=np.uint8, mode="c", shape=(nbytes,))).untyped_storage()

    monkeypatch.setattr(torch.UntypedStorage, "from_file", staticmethod(from_file))


def peak_of_python(run):
    """Peak memory of Python and numpy."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
