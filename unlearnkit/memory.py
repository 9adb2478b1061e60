"""The most memory that a process has held."""

import sys
from typing import final

import attrs
import torch


@final
@attrs.frozen(kw_only=True)
class PeakMemory:
    """The most memory that this process has held at once since it started.

    Attributes:
        host: Bytes of main memory (largest resident set); None where the system does not say, as on Windows.
        cuda: Bytes of tensors on the CUDA device; None without one.
    """

    host: int | None
    cuda: int | None


def peak_memory(device: torch.device) -> PeakMemory:
    """Read the high-water marks of this process; a job that follows another in one process starts from the other's.

    Args:
        device: Where the job runs.

    Returns:
        Host and CUDA peak.

    Example:
        >>> peak_memory(torch.device("cpu")).cuda is None
        True
    """
    cuda = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return PeakMemory(host=_host(), cuda=cuda)


def _host() -> int | None:
    try:
        import resource  # noqa: PLC0415 - Windows has no such module
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # kibibytes everywhere but on macOS
