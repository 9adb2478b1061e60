"""Batches on the device of a model: the one way from a data loader to a forward pass."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from unlearnkit.batches import map_tensors, tensors, to_device


def feed(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yield every batch as it comes, and as a model takes it: on its device and finished (see `to_device`).

    On a CPU each is moved when it is asked for, which costs nothing where it is there already. On CUDA the next batch
    is fetched and its copy is started, from pinned memory and on a stream of its own, before the last one is worked on;
    an error while the next one is fetched is then raised one batch early.

    Args:
        batches: A data loader or any iterable of batches.
        device: Of the model.

    Yields:
        The batch where it was, to look at without waiting for the device, and the batch to work on.

    Example:
        >>> [moved.tolist() for _, moved in feed([torch.zeros(1), torch.ones(1)], torch.device("cpu"))]
        [[0.0], [1.0]]
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch, moved, ready in one_ahead(_copied(batch, device, stream) for batch in batches):
        now = torch.cuda.current_stream(device)
        now.wait_event(ready)
        for tensor in tensors(moved):
            tensor.record_stream(now)  # its memory must not be given away while this stream still reads it
        yield batch, moved


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items in order, each when the next one has been fetched already.

    Args:
        items: Any.

    Yields:
        The same items.

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


def _copied(batch: Any, device: torch.device, stream: torch.cuda.Stream) -> tuple[Any, Any, torch.cuda.Event]:
    with torch.cuda.stream(stream):
        moved = to_device(map_tensors(batch, _pinned), device)
        return batch, moved, stream.record_event()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
