"""Free memory, and the peak memory of this process."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import final

import attrs
import torch

MIB = 2**20


@final
@attrs.frozen(kw_only=True)
class PeakMemory:
    """Peak memory of this process in bytes; None where it is not known."""

    host: int | None
    cuda: int | None


def peak_memory(device: torch.device) -> PeakMemory:
    """Return the peak memory of this process since it started, or since `reset_peak`."""
    cuda = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(host=_host(), cuda=cuda)


def _host() -> int | None:
    try:
        import resource  # noqa: PLC0415 - Windows has no such module
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # kibibytes everywhere but on macOS


def reset_peak(device: torch.device) -> None:
    """Reset the peak memory of this process; of the host on Linux only."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_memory() -> int | None:
    """Return how much memory is available, within the limit of a container."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    with suppress(OSError, ValueError):  # no file outside a container; "max" without a limit
        room = int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii"))
        free = room if free is None else min(free, room)
    return None if free is None else max(free, 0)
