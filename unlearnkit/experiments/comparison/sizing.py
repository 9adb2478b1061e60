"""How many processes: as many as there are cores for, and memory."""

import math
import os
from collections.abc import Iterable
from typing import final

import attrs
import torch
from torch import nn

from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.memory import MIB, free_memory

_COPIES = 12
"""Models' worth of memory that a trial takes besides its retrained models: original, copy, optimiser, importances."""
_PROCESS = 900 * MIB
"""Python with torch, scikit-learn and small data, resident."""


@final
@attrs.frozen(kw_only=True)
class Sizing:
    """How many processes, and why."""

    jobs: int
    threads: int
    why: str


def need_of(model: nn.Module, *, retrained: int, peaks: Iterable[float] = ()) -> tuple[int, str]:
    """Estimate what a process takes."""
    seen = max(peaks, default=0.0)
    if seen:
        return int(seen * MIB), "the highest peak of the trials that are done"
    size = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    return _PROCESS + size * (_COPIES + retrained), "estimated from the size of the model; activations not counted"


def sizing(
    jobs: int | None, *, threads: int, units: int, device: torch.device, need: tuple[int, str], free: int | None = None
) -> Sizing:
    """Choose the number of processes.

    Example:
        >>> cpu = torch.device("cpu")
        >>> sizing(3, threads=1, units=9, device=cpu, need=(0, "")).why
        '3 processes of 1 thread, as asked for'
    """
    if jobs is not None:
        return Sizing(jobs=jobs, threads=threads, why=f"{_count(jobs, threads)}, as asked for")
    if device.type != "cpu":
        why = f"{_count(1, threads)}: the trials share one {device.type} device (--jobs N for more)"
        return Sizing(jobs=1, threads=threads, why=why)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = free_memory() if free is None else free
    if free is None:
        why = f"{_count(1, threads)}: this system does not say how much memory is free (--jobs N for more)"
        return Sizing(jobs=1, threads=threads, why=why)
    by_memory = math.floor(0.9 * free / max(need[0], 1))
    chosen = max(1, min(cores // threads, by_memory, units))
    why = (
        f"{_count(chosen, threads)}: {cores} cores, {free / MIB:,.0f} MiB free, {need[0] / MIB:,.0f} MiB a process "
        f"({need[1]}), {units} units of work"
    )
    if chosen * threads < min(cores, units):
        why += f"; {cores - chosen * threads} cores idle (comparison.threads uses them inside a trial)"
    return Sizing(jobs=chosen, threads=threads, why=why)


def of_ranks(jobs: int | None, *, ranks: int, threads: int) -> Sizing:
    """Say what processes of ``torchrun`` do: each works by itself, however many they are."""
    if jobs not in {None, 1}:
        raise ConfigurationError(f"--jobs: expected none with the {ranks} processes of torchrun, saw {jobs}")
    return Sizing(jobs=1, threads=threads, why=f"{_count(ranks, threads)}, as torchrun has started")


def _count(jobs: int, threads: int) -> str:
    return f"{jobs} process{'es' if jobs > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
