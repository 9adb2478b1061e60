"""Checks running totals: the first batch with a NaN or an infinity, and squares that underflow."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from unlearnkit.utils.errors import NonFiniteError

_SMALL = 1 << 16  # elements of the totals that are looked at after every batch: biases and norms
_TINY = 1 << 12  # elements of buffers that are copied side by side: hundreds of sums take longer
_EVERY = 16  # batches between two checks of all totals
_AT_A_TIME = 1 << 18  # elements: temporaries stay small


@final
class NanCheck:
    """Checks running totals: NaN and infinity never leave a sum of squares, so a late check still finds them.

    On a CUDA device nothing waits: the looks are collected and read at the end.
    """

    def __init__(
        self, running: Callable[..., Iterable[tuple[str, Tensor]]], result: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        self._running, self._result = running, result
        self._batches = 0
        self._clean = 0
        self._flags: list[tuple[int, Tensor]] = []

    def check(self, *, whole: bool = False) -> None:
        index = self._batches
        whole = whole or index % _EVERY == 0
        buffers = [buffer for _, buffer in self._running(largest=None if whole else _SMALL)]
        if not buffers:
            return
        # A sum is finite when all its terms are, unless it overflows itself, which `finish` then finds out.
        late = on_device(buffers[0])
        fine = torch.isfinite(sum_at_once(buffers) if late else sum_in_turn(buffers))
        if late:
            self._flags.append((index, fine))
        elif not bool(fine):
            self._raise(self._result(), index)
        if whole:
            self._clean = index + 1

    def next_batch(self) -> None:
        self._batches += 1

    def finish(self, totals: Mapping[str, Tensor]) -> None:
        """Check all totals at the end of a pass."""
        first = next((index for index, fine in self._flags if not bool(fine)), None)
        if first is not None or not all(bool(torch.isfinite(t.sum())) for t in totals.values()):
            self._raise(totals, first)

    def _raise(self, totals: Mapping[str, Tensor], index: int | None) -> None:
        names = [name for name, t in totals.items() if not bool(torch.isfinite(t).all())]
        if not names:
            return
        where = (
            f"in batch {index}" if index is not None else f"in one of the batches {self._clean} to {self._batches - 1}"
        )
        raise NonFiniteError(
            f"expected finite gradients, saw NaN or infinity {where} (counted from 0) in the squares for "
            f"{', '.join(names)}: look at that batch's inputs and losses; squares overflow above 1e19 in float32"
        )


def on_device(tensor: Tensor) -> bool:
    """Whether the host would wait for the value of a tensor."""
    return tensor.is_cuda


def sum_in_turn(buffers: Sequence[Tensor]) -> Tensor:
    """Sum of all elements, buffer by buffer and the tiny ones concatenated: fastest on a CPU."""
    tiny = [buffer.reshape(-1) for buffer in buffers if buffer.numel() <= _TINY]
    sums = [buffer.sum() for buffer in buffers if buffer.numel() > _TINY]
    sums += [torch.cat(tiny).sum()] if tiny else []
    return torch.stack([each.double() for each in sums]).sum()


def sum_at_once(buffers: Sequence[Tensor]) -> Tensor:
    """Sum of the absolute values of all elements, in a few operations: fastest on a device."""
    return get_total_norm(buffers, 1.0, foreach=True)


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
        parts = _parts(gradient.detach().reshape(-1))
        if any(bool(_vanishes(part.to(dtype)).any()) for part in parts):  # as large as the gradient only where needed
            lost = torch.cat([torch.as_tensor(_vanishes(p.to(dtype)), device=gradient.device) for p in parts])
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
        for i, part in enumerate(map(_host, _parts(total))):
            small = (part > 0) & (part < tiny)
            if name in self._lost:
                small |= _host(_parts(self._lost[name])[i]) & (part == 0)
            count += int(torch.count_nonzero(small) if isinstance(small, Tensor) else np.count_nonzero(small))
        return count


def _parts(flat: Tensor) -> list[Tensor]:
    return [flat[at : at + _AT_A_TIME] for at in range(0, len(flat), _AT_A_TIME)]


def _vanishes(g: Tensor) -> Any:
    host = _host(g)
    with np.errstate(all="ignore"):
        return (host * host == 0) & (host != 0)


def _host(t: Tensor) -> Any:
    """View a tensor on the CPU as a numpy array, which compares several times as fast; one on a device as it is."""
    return t if t.device.type != "cpu" else t.numpy()
