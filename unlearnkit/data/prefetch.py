"""Batches on the device of a model: the one way from a data loader to a forward pass."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from unlearnkit.data.batches import map_tensors, tensors, to_device

_QUEUED = 2  # batches that wait on the device for their turn: it never idles, and they do not fill its memory

T = TypeVar("T")


class Passed(Protocol):
    """A point in the work of a device, as `torch.cuda.Event` is one."""

    def synchronize(self) -> None:
        """Wait until the device has come this far."""
        ...


def feed(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yield every batch as it comes, and as a model takes it: on its device and finished (see `to_device`).

    On a CPU each is moved when it is asked for, which costs nothing where it is there already. On CUDA the next batch
    is fetched and its copy is started, from pinned memory and on a stream of its own, before the last one is worked on;
    an error while the next one is fetched is then raised one batch early. The host hands out work for two batches more
    than the device has done, and waits before it hands out a third: they would fill the memory.

    Example:
        >>> [moved.tolist() for _, moved in feed([torch.zeros(1), torch.ones(1)], torch.device("cpu"))]
        [[0.0], [1.0]]
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead = one_ahead(_copied(batch, device, stream) for batch in batches)
    for batch, moved, ready in held_back(ahead, lambda: torch.cuda.current_stream(device).record_event()):
        now = torch.cuda.current_stream(device)
        now.wait_event(ready)
        for tensor in tensors(moved):
            tensor.record_stream(now)  # its memory must not be given away while this stream still reads it
        yield batch, moved


def held_back(items: Iterable[T], mark: Callable[[], Passed], *, queued: int = _QUEUED) -> Iterator[T]:
    """Yield items, and wait for a device that has fallen behind."""
    marks: deque[Passed] = deque()
    for item in items:
        yield item
        marks.append(mark())
        if len(marks) > queued:
            marks.popleft().synchronize()


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items in order, each when the next one has been fetched already.

    Example:
        >>> list(one_ahead(iter("abc")))
        ['a', 'b', 'c']
    """
    source = iter(items)
    try:
        last = next(source)
    except StopIteration:
        return
    for item in source:
        yield last
        last = item
    yield last


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Start the copy of a tensor to a device, and do not wait for it."""
    return (_pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _copied(batch: Any, device: torch.device, stream: torch.cuda.Stream) -> tuple[Any, Any, torch.cuda.Event]:
    # What is there already may still be being made; and memory that was read before may be written now.
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        moved = to_device(map_tensors(batch, _pinned), device)
        return batch, moved, stream.record_event()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
