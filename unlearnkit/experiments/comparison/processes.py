"""Work in several processes: how many fit, and a pool that reports which trials a dying process was running."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue
from typing import final

import attrs
import torch
from torch import nn

from unlearnkit.experiments.comparison.worker import Event, Unit, Watch, Worker
from unlearnkit.plugins.manager import default_manager
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.memory import MIB, free_memory

_TICK = 0.1  # seconds between two looks at the events of the workers
_COPIES = 12  # of a trial besides its retrained models: original, edited copy, optimiser, importances
_PROCESS = 900 * MIB  # Python with torch, scikit-learn and small data, resident


@final
@attrs.frozen(kw_only=True)
class Sizing:
    """How many processes, and why."""

    jobs: int
    why: str


def need_of(model: nn.Module, *, retrained: int, peaks: Iterable[float] = ()) -> tuple[int, str]:
    """Estimate the memory of a process in bytes, and say where the estimate comes from."""
    seen = max(peaks, default=0.0)
    if seen:
        return int(seen * MIB), "the highest peak of the trials that are done"
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return _PROCESS + size * (_COPIES + retrained), "estimated from the size of the model; activations not counted"


def sizing(
    jobs: int | None, *, threads: int, units: int, device: torch.device, need: tuple[int, str], free: int | None = None
) -> Sizing:
    """Choose the number of processes, by cores and free memory unless it is given."""
    if jobs is not None:
        return Sizing(jobs=jobs, why=f"{_count(jobs, threads)}, as asked for")
    one = _count(1, threads)
    if device.type != "cpu":
        return Sizing(jobs=1, why=f"{one}: the trials share one {device.type} device (--jobs N for more)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory() if free is None else free
    if free is None:
        return Sizing(jobs=1, why=f"{one}: this system does not say how much memory is free (--jobs N for more)")
    by_memory = int(0.9 * free / max(need[0], 1))
    chosen = max(1, min(cores // threads, by_memory, units))
    why = (
        f"{_count(chosen, threads)}: {cores} cores, {free / MIB:,.0f} MiB free, {need[0] / MIB:,.0f} MiB a process "
        f"({need[1]}), {units} units of work"
    )
    if chosen * threads < min(cores, units):
        why += f"; {cores - chosen * threads} cores idle (comparison.threads uses them inside a trial)"
    return Sizing(jobs=chosen, why=why)


def of_ranks(jobs: int | None, *, ranks: int, threads: int) -> Sizing:
    """Return the processes that torchrun has started, each of which works by itself."""
    if jobs not in {None, 1}:
        raise ConfigurationError(f"--jobs: expected none with the {ranks} processes of torchrun, saw {jobs}")
    return Sizing(jobs=1, why=f"{_count(ranks, threads)}, as torchrun has started")


def _count(jobs: int, threads: int) -> str:
    return f"{jobs} process{'es' if jobs > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"


def run_in_processes(waves: Iterable[Iterable[Unit]], *, jobs: int, watch: Watch) -> tuple[Event, ...] | None:
    """Run units in fresh processes, wave by wave; returns None, or what was running when a process died."""
    context = multiprocessing.get_context("spawn")
    running: dict[int, Event] = {}
    events: SimpleQueue[Event] = context.SimpleQueue()
    others = set(multiprocessing.active_children())

    def receive() -> None:
        while not events.empty():
            event = events.get()
            running.pop(event.process, None)
            if event.kind == "started":
                running[event.process] = event
            watch(event)

    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_initialise, initargs=(events,))
    try:
        for wave in waves:
            with _sigint_ignored():
                left = {pool.submit(_run, unit) for unit in wave}
            while left:
                ended, left = wait(left, timeout=_TICK, return_when=FIRST_COMPLETED)
                receive()
                for future in ended:
                    future.result()
        receive()
    except BrokenProcessPool:
        receive()
        return tuple(running.values())
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return None


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    """Spawn workers with SIGINT ignored; the parent stops them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker: list[tuple[Worker, Watch]] = []  # of this process, when it is one of a pool


def _initialise(events: "SimpleQueue[Event]") -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _worker[:] = [(Worker(default_manager()), events.put)]


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        time.sleep(_TICK)
        os._exit(1)  # without this, the workers of a killed parent would wait for ever


def _run(unit: Unit) -> None:
    unit.run(*_worker[0])
