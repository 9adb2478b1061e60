"""Pieces of tensors that are small enough to stay in the cache of a processor while a rule works on them."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Smaller pieces pay more for starting operations; larger ones fall out of the cache of a core (a rule has a handful of
# arrays), and take more memory.
_ON_CPU = 3 << 15
# On a device the start of each operation costs more than what caching saves.
_ON_DEVICE = 1 << 24


def chunk_size(device: torch.device) -> int:
    """Return how many elements of a tensor to work on at a time."""
    return _ON_CPU if device.type == "cpu" else _ON_DEVICE


def chunks(*tensors: Tensor, limit: int) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into views of the same places, each of no more than ``limit`` elements.

    The first tensor is cut along its largest stride, so that each of its pieces lies together in memory; every piece
    has as many dimensions as the whole.

    Example:
        >>> [a.tolist() for a, _ in chunks(torch.arange(5), torch.zeros(5), limit=2)]
        [[0, 1], [2, 3], [4]]
    """
    lead = tensors[0]
    if lead.numel() <= limit:
        yield tensors
        return
    dim = max((d for d in range(lead.dim()) if lead.shape[d] > 1), key=lead.stride)
    length = lead.shape[dim]
    rows = max(1, limit * length // lead.numel())
    for start in range(0, length, rows):
        part = min(rows, length - start)
        yield from chunks(*(t.narrow(dim, start, part) for t in tensors), limit=limit)


def in_memory_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Permute the dimensions of tensors alike, so that those of the first stand in the order of its memory.

    Example:
        >>> in_memory_order(torch.zeros(2, 3).t())[0].is_contiguous()
        True
    """
    lead = tensors[0]
    if lead.is_contiguous():
        return tensors
    order = sorted(range(lead.dim()), key=lead.stride, reverse=True)
    return tuple(t.permute(order) for t in tensors)
