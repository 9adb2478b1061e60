"""Says when squares are too small for the dtype that they are added in."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

_AT_A_TIME = 1 << 18  # elements: what is made on the way is small


@final
class Underflow:
    """Finds weights whose gradient is not zero and whose total is zero, or too small to have all its digits.

    A total between 0 and the smallest normal number has lost digits: every total is looked at, once, at the end. A
    total of 0 is a loss only where some gradient was not 0, and single gradients are seen only where a sample is
    differentiated alone, as the samples of the engine's probe are: there it is noted which weights had g ≠ 0 = g².
    """

    def __init__(self) -> None:
        self._lost: dict[str, Tensor] = {}

    def look(self, name: str, gradient: Tensor, dtype: torch.dtype) -> None:
        """Look at one gradient."""
        flat = gradient.detach().reshape(-1)
        parts = [_vanishes(part.to(dtype)).any() for part in _parts(flat)]
        if parts and bool(torch.stack(parts).any()):
            lost = torch.cat([_vanishes(part.to(dtype)) for part in _parts(flat)])
            self._lost[name] = lost | self._lost[name] if name in self._lost else lost

    def report(self, totals: Mapping[str, Tensor]) -> str | None:
        """Say which totals are too small."""
        found = {name: self._too_small(name, total.reshape(-1)) for name, total in totals.items()}
        counts = {name: count for name, count in zip(found, _numbers(list(found.values())), strict=True) if count}
        if not counts:
            return None
        names = ", ".join(f"{name} ({count} of {totals[name].numel()})" for name, count in counts.items())
        kinds = " and ".join(sorted({str(totals[name].dtype).removeprefix("torch.") for name in counts}))
        wider = "use accumulate='float64', or " if "float32" in kinds else ""
        return (
            f"squares underflow in {kinds}: weights whose gradients are not zero have a total of zero or of few digits "
            f"in {names}: {wider}multiply the loss by a power of two"
        )

    def _too_small(self, name: str, total: Tensor) -> Tensor:
        tiny, count = torch.finfo(total.dtype).tiny, torch.zeros((), dtype=torch.long, device=total.device)
        for i, part in enumerate(_parts(total)):
            small = (part > 0) & (part < tiny)
            if name in self._lost:
                small |= (part == 0) & _parts(self._lost[name])[i]
            count += torch.count_nonzero(small)
        return count


def _parts(flat: Tensor) -> list[Tensor]:
    return [flat[at : at + _AT_A_TIME] for at in range(0, len(flat), _AT_A_TIME)]


def _vanishes(g: Tensor) -> Tensor:
    return (g != 0) & (g.square() == 0)


def _numbers(counts: list[Tensor]) -> list[int]:
    """Bring all counts over at once: one wait, not one for each parameter."""
    return [int(count) for count in torch.stack(counts).cpu()] if counts else []
