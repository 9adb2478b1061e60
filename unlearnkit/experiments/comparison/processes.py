"""Work in several processes, which may die: then what they did is kept, and what they were doing is found out."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from multiprocessing.queues import SimpleQueue

from unlearnkit.experiments.comparison.work_units import Event, Unit, Watch
from unlearnkit.experiments.comparison.worker import Worker
from unlearnkit.plugins.manager import default_manager

_TICK = 0.1  # seconds between two looks at what the processes tell
_here: list[tuple[Worker, Watch]] = []  # of a worker process


def in_processes(waves: Iterable[Iterable[Unit]], *, jobs: int, watch: Watch) -> tuple[Event, ...] | None:
    """Do units of work in fresh processes."""
    context = multiprocessing.get_context("spawn")
    running: dict[int, Event] = {}
    told: SimpleQueue[Event] = context.SimpleQueue()
    others = set(multiprocessing.active_children())

    def listen() -> None:
        while not told.empty():
            event = told.get()
            running.pop(event.process, None)
            if event.kind == "started":
                running[event.process] = event
            watch(event)

    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(told,))
    try:
        for wave in waves:
            with _deaf():
                left: set[Future[None]] = {pool.submit(_do, unit) for unit in wave}
            while left:
                ended, left = wait(left, timeout=_TICK, return_when=FIRST_COMPLETED)
                listen()
                for future in ended:
                    future.result()
        listen()
    except BrokenProcessPool:
        listen()
        return tuple(running.values())
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return None


@contextmanager
def _deaf() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C, from their first moment on: it is the parent that ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _begin(told: "SimpleQueue[Event]") -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _here[:] = [(Worker(default_manager()), told.put)]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        time.sleep(_TICK)
        os._exit(1)  # a parent that was killed cannot say so: without this, its workers would wait for ever


def _do(unit: Unit) -> None:
    bench, tell = _here[0]
    unit.do(bench, tell)
