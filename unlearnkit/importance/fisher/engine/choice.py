"""Which of several exact kernels to run: the best guess, or the one that was fastest when timed once."""

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar, final

import torch


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...


_K = TypeVar("_K", bound=Named)
_ROUNDS = 2
_HOPELESS = 4.0


@final
class Chooser:
    """Chooses a kernel once for each key and stays with it.

    Kernels differ in rounding only, but they do differ: a choice by the clock may give other last bits in another
    run, which is why it must be asked for.

    Example:
        >>> import types
        >>> one, two = types.SimpleNamespace(name="one"), types.SimpleNamespace(name="two")
        >>> Chooser().choose("layer", [one, two], lambda kernel: lambda: None).name
        'one'
    """

    def __init__(self, *, timed: bool = False) -> None:
        self._timed = timed
        self._chosen: dict[Hashable, str] = {}

    def choose(self, key: Hashable, candidates: Sequence[_K], trial: Callable[[_K], Callable[[], None]]) -> _K:
        """Return the kernel for a key."""
        if len(candidates) == 1 or not self._timed:
            return candidates[0]
        if key not in self._chosen:
            self._chosen[key] = _fastest(candidates, trial)
        return next((k for k in candidates if k.name == self._chosen[key]), candidates[0])


def _fastest(candidates: Sequence[_K], trial: Callable[[_K], Callable[[], None]]) -> str:
    best: dict[str, float] = {}
    if _on_device():
        for candidate in candidates:
            trial(candidate)()  # what is compiled or looked up on first use is no part of what a kernel takes
    for _ in range(_ROUNDS):
        for candidate in candidates:
            if best.get(candidate.name, 0.0) > _HOPELESS * min(best.values(), default=0.0):
                continue
            seconds = _seconds(trial(candidate))
            best[candidate.name] = min(seconds, best.get(candidate.name, seconds))
    return min(best, key=lambda name: best[name])


def _seconds(run: Callable[[], None]) -> float:
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if _on_device():
        torch.cuda.synchronize()


def _on_device() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
