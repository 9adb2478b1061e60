"""Checks running totals: the first batch with a NaN or an infinity, and squares that underflow."""

from collections.abc import Callable, Iterable, Mapping
from typing import final

import torch
from torch import Tensor

from unlearnkit.utils.errors import NonFiniteError

_AT_A_TIME = 1 << 18  # elements: temporaries stay small


@final
class NanCheck:
    """Looks at the running totals after every batch: NaN and infinity never leave a sum of squares.

    On a CUDA device nothing waits: the looks are collected and read at the end.
    """

    def __init__(self, running: Callable[[], Iterable[Tensor]], result: Callable[[], Mapping[str, Tensor]]) -> None:
        self._running, self._result = running, result
        self._batches = 0
        self._flags: list[tuple[int, Tensor]] = []

    def check(self) -> None:
        index, buffers = self._batches, [*self._running()]
        if not buffers:
            return
        # A sum is finite when all its terms are, unless it overflows itself, which `finish` then finds out.
        fine = torch.isfinite(torch.stack([buffer.sum().double() for buffer in buffers]).sum())
        if on_device(fine):
            self._flags.append((index, fine))
        elif not bool(fine):
            self._raise(self._result(), f"in batch {index} (counted from 0)")

    def end_batch(self) -> None:
        self.check()
        self._batches += 1

    def finish(self, totals: Mapping[str, Tensor]) -> None:
        """Check all totals at the end of a pass."""
        first = next((index for index, fine in self._flags if not bool(fine)), None)
        if first is not None:
            self._raise(totals, f"in batch {first} (counted from 0)")
        if not all(bool(torch.isfinite(t.sum())) for t in totals.values()):
            self._raise(totals, "in the sum of all batches")

    def _raise(self, totals: Mapping[str, Tensor], where: str) -> None:
        names = [name for name, t in totals.items() if not bool(torch.isfinite(t).all())]
        if names:
            raise NonFiniteError(
                f"expected finite gradients, saw NaN or infinity {where} in the squares for {', '.join(names)}: "
                "look at the inputs and losses; squares overflow above 1e19 in float32"
            )


def on_device(tensor: Tensor) -> bool:
    """Whether the host would wait for the value of a tensor."""
    return tensor.is_cuda


@final
class Underflow:
    """Finds weights whose gradient is not zero and whose total is zero, or too small to have all its digits.

    A total between 0 and the smallest normal number has lost digits: every total is looked at, once, at the end. A
    total of 0 is a loss only where some gradient was not 0, and single gradients are seen only where a sample is
    differentiated alone, as the samples of the engine's probe are: there it is noted which weights had g ≠ 0 = g².
    """

    def __init__(self) -> None:
        self._lost: dict[str, Tensor] = {}

    def check(self, name: str, gradient: Tensor, dtype: torch.dtype) -> None:
        """Note where g ≠ 0 = g² in one gradient."""
        parts = torch.split(gradient.detach().reshape(-1), _AT_A_TIME)
        if any(bool(_vanishes(part.to(dtype)).any()) for part in parts):  # a mask is kept only where it is needed
            lost = torch.cat([_vanishes(part.to(dtype)) for part in parts])
            self._lost[name] = lost | self._lost[name] if name in self._lost else lost

    def report(self, totals: Mapping[str, Tensor]) -> str | None:
        """Return a message that names totals that are too small, or None."""
        found = {name: self._too_small(name, total.reshape(-1)) for name, total in totals.items()}
        counts = {name: count for name, count in found.items() if count}
        if not counts:
            return None
        names = ", ".join(f"{name} ({count} of {totals[name].numel()})" for name, count in counts.items())
        kinds = " and ".join(sorted({str(totals[name].dtype).removeprefix("torch.") for name in counts}))
        wider = "use accumulate='float64', or " if "float32" in kinds else ""
        return (
            f"squares underflow in {kinds}: weights whose gradients are not zero have a total of zero or of few digits "
            f"in {names}: {wider}multiply the loss by a power of two"
        )

    def _too_small(self, name: str, total: Tensor) -> int:
        tiny, count = torch.finfo(total.dtype).tiny, 0
        lost = self._lost.get(name, torch.zeros((), dtype=torch.bool, device=total.device)).expand(len(total))
        for part, gone in zip(torch.split(total, _AT_A_TIME), torch.split(lost, _AT_A_TIME), strict=True):
            count += int(torch.count_nonzero((part > 0) & (part < tiny) | gone & (part == 0)))
        return count


def _vanishes(g: Tensor) -> Tensor:
    return (g.square() == 0) & (g != 0)
