"""CUDA graphs: the pass over one shape of batch is recorded once, and replayed for every batch of that shape.

A pass starts thousands of operations, most of them small; a replay starts all of them at once. What is recorded reads
one copy of a batch and adds to one set of totals, always in the same places: a later batch is written into that copy
first. Not run on a GPU yet.
"""

import abc
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.data.batches import map_tensors, tensors
from unlearnkit.importance.fisher.engine.call_plan import UnprovenError
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError, UnlearnKitWarning, UnsupportedModelError

_WHO = "graphs=True"
_ANY = torch.zeros(())  # stands for any tensor, and is equal to itself

Work = Callable[[Any], Tensor]
"""Adds what a batch has, and returns its losses."""


class Recorder(abc.ABC):
    """Records work on a device instead of doing it."""

    @abc.abstractmethod
    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do work where it will be recorded: what is loaded or looked up on first use cannot be recorded.

        Args:
            work: Whatever it does, counts.

        Returns:
            What it returned.
        """

    @abc.abstractmethod
    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """Record work, and do nothing.

        Args:
            work: Must not read what the device computes.

        Returns:
            What does it, each time it is called, in the same memory.
        """


@final
class CudaRecorder(Recorder):
    """Records on a stream of its own, by `torch.cuda.CUDAGraph`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def warm(self, work: Callable[[], Tensor]) -> Tensor:
        """Do it on that stream; see `Recorder.warm`."""
        now = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            found = work()
        now.wait_stream(self._stream)
        found.record_stream(now)
        return found

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """See `Recorder.record`. Other threads, such as that of a loader that pins memory, may go on meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


@final
@attrs.frozen(kw_only=True, eq=False)
class _Recording:
    """A pass that can be replayed."""

    key: Hashable
    batch: Any
    rest: Any
    losses: Tensor
    places: Mapping[Hashable, int]
    replay: Callable[[], None]

    def run(self, batch: Any) -> Tensor:
        """Do it for a batch, and return its losses."""
        for held, given in zip(tensors(self.batch), tensors(batch), strict=True):
            held.copy_(given)
        self.replay()
        return self.losses


@final
class Graphs:
    """Adds batches by replaying one recorded pass, where they are like those that it was recorded for.

    The first such batch goes on its own, the second where passes are recorded, the third is recorded and replayed, and
    so is every later one. Batches of other shapes go on their own.
    """

    def __init__(self, recorder: Recorder, places: Callable[[], Mapping[Hashable, int]]) -> None:
        self._recorder, self._places = recorder, places
        self._passes: Counter[Hashable] = Counter()
        self._recording: _Recording | None = None
        self._said = False

    def run(self, key: Hashable, batch: Any, work: Work) -> Tensor:
        """Add a batch whose like has been added before."""
        if self._recording is None:
            self._passes[key] += 1
            if self._passes[key] == 1:
                return self._recorder.warm(lambda: work(batch))
            self._recording = self._recorded(key, batch, work)
        if key != self._recording.key or not self._alike(batch):
            return work(batch)
        if self._recording.places != self._places():
            raise RuntimeError("expected totals where they were when a pass was recorded, saw them elsewhere")
        return self._recording.run(batch)

    def _alike(self, batch: Any) -> bool:
        """Say whether a batch is the recorded one in all but the values of its tensors; warn once where it is not."""
        assert self._recording is not None, "asked for a batch of its shape"
        alike = _same(self._recording.rest, _rest(batch))
        if not alike and not self._said:
            self._said = True
            warnings.warn(
                f"{_WHO}: batches hold other things beside tensors than the one that was recorded: these are added "
                "without it, which is right and slower; leave names and the like out of batches",
                UnlearnKitWarning,
                stacklevel=2,
            )
        return alike

    def _recorded(self, key: Hashable, batch: Any, work: Work) -> _Recording:
        held, rest, places = map_tensors(batch, torch.clone), _rest(batch), dict(self._places())
        found: list[Tensor] = []
        try:
            replay = self._recorder.record(lambda: found.append(work(held)))
        except (UnlearnKitError, UnprovenError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"{_WHO}: this pass cannot be recorded ({(str(error).strip().splitlines() or [''])[0][:160]}); a model "
                "or an objective that reads what the device computes, or brings tensors over, is such a one"
            ) from error
        if places != self._places():
            raise UnsupportedModelError(f"{_WHO}: a pass that adds in other places than the one before it")
        return _Recording(key=key, batch=held, rest=rest, losses=found[0], places=places, replay=replay)


def recorder_on(device: torch.device) -> Recorder:
    """Make what records on a device."""
    if device.type != "cuda":
        raise ConfigurationError(f"{_WHO}: expected a model on a CUDA device, saw one on {device}: leave graphs out")
    return CudaRecorder(device)


def refuse_with_graphs(wanted: Mapping[str, bool]) -> None:
    """Refuse what cannot be recorded."""
    asked = [name for name, so in wanted.items() if so]
    if asked:
        raise ConfigurationError(f"{_WHO}: expected totals alone, in float32 or float64, saw {' and '.join(asked)}")


def unrecordable(reason: str) -> UnsupportedModelError:
    """Say that a model's passes cannot be recorded."""
    return UnsupportedModelError(f"{_WHO}: passes of this model cannot be recorded, {reason}: leave graphs out")


def _rest(batch: Any) -> Any:
    """Return what is no tensor in a batch."""
    return map_tensors(batch, lambda _: _ANY)


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):
        return False
