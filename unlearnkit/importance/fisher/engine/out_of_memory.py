"""Out of memory is no end: fewer samples in one pass."""

import gc
import warnings
from collections.abc import Hashable
from typing import final

import torch

from unlearnkit.utils.errors import UnlearnKitWarning

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


@final
class Limit:
    """How many samples go through the model in one pass: halved whenever memory runs out, and never raised again."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._said = False

    def step(self, size: int) -> int:
        """Return how many samples to take of so many."""
        return min(self._chunk or size, size)

    def halve(self, tried: int, device: torch.device) -> None:
        """Take half as many from now on, give memory back, and say so the first time."""
        self._chunk = tried // 2
        gc.collect()  # what the failed pass held may be in cycles
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if not self._said:
            self._said = True
            warnings.warn(
                f"out of memory with {tried} samples in one pass: going on with {self._chunk} and fewer if need be; "
                f"the totals are the same, and chunk={self._chunk} begins there",
                UnlearnKitWarning,
                stacklevel=2,
            )


@final
class Fitted:
    """Which batches are known to fit, so that their squares need not be added apart from the rest."""

    def __init__(self, passes: int) -> None:
        self._passes = passes
        self._known: dict[Hashable, tuple[int, int]] = {}

    def sure(self, kind: Hashable, size: int) -> bool:
        """Say whether so many samples of a kind of batch have gone well often enough."""
        largest, times = self._known.get(kind, (0, 0))
        return size <= largest and times >= self._passes

    def well(self, kind: Hashable, size: int) -> None:
        """Remember a pass that went well."""
        largest, times = self._known.get(kind, (0, 0))
        if size >= largest:
            self._known[kind] = size, times + 1 if size == largest else 1

    def trust(self, kind: Hashable, size: int) -> bool:
        """Be sure from now on of batches that have gone well at all: what is set apart may be too much.

        A second pass that sets apart holds two sets of totals where the first held one; later ones hold one again.
        """
        largest, times = self._known.get(kind, (0, 0))
        if size > largest or times >= self._passes:
            return False
        self._known[kind] = largest, self._passes
        return True
