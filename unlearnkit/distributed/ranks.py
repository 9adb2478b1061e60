"""The ranks of torch.distributed: this process's rank, device and share of the batches."""

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar, final

import attrs
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from unlearnkit.utils.errors import ConfigurationError

T = TypeVar("T")

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@final
@attrs.frozen(kw_only=True)
class Ranks:
    """This process's rank, and the number of processes.

    Attributes:
        rank: 0 … size − 1.
        size: 1 when torch.distributed is not in use.

    Example:
        >>> list(Ranks(rank=1, size=3).share("abcdefg"))
        ['b', 'e']
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Return the ranks of the default process group; a single one inside `alone`."""
        if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def share(self, batches: Iterable[T]) -> Iterable[T]:
        """Return every size-th batch: over all ranks each batch once, none dropped at the end.

        A `torch.utils.data.DataLoader` of a data set with indices loads the rank's own batches only.
        """
        if self.size == 1:
            return batches
        if isinstance(batches, Sequence):
            return batches[self.rank :: self.size]
        sampler = batches.batch_sampler if isinstance(batches, DataLoader) else None
        # The sampler of an iterable data set is a dummy without an end.
        if not isinstance(batches, DataLoader) or isinstance(batches.dataset, IterableDataset) or sampler is None:
            return itertools.islice(batches, self.rank, None, self.size)
        return DataLoader(
            batches.dataset,
            batch_sampler=list(itertools.islice(sampler, self.rank, None, self.size)),
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            worker_init_fn=batches.worker_init_fn,
            generator=batches.generator,
        )


@contextmanager
def alone() -> Iterator[None]:
    """Make `Ranks.current` a single rank inside the block, so that nothing in it waits for other processes."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


@contextmanager
def joined(device: str = "auto") -> Iterator[Ranks]:
    """Make the process group of what ``torchrun`` has started, if it has: NCCL on CUDA, gloo on a CPU.

    Each process takes the CUDA device of its local rank.

    Args:
        device: "auto", "cpu" or "cuda".

    Yields:
        This process's ranks.

    Raises:
        ConfigurationError: Several processes are to share one CUDA device.
    """
    if world_size() < 2 or dist.is_initialized():
        yield Ranks.current()
        return
    own = own_device(device, local_rank=int(os.environ.get("LOCAL_RANK", "0")))
    if own is None:
        dist.init_process_group("gloo")
    else:
        torch.cuda.set_device(own)
        # Tensors go by NCCL; objects go by gloo, which can say which rank is dead.
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=own)
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes ``torchrun`` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: str, *, local_rank: int) -> torch.device | None:
    """Return the CUDA device of a local rank, or None for the CPU."""
    if device.startswith("cuda:"):
        raise ConfigurationError(
            f"device: expected 'cuda', 'cpu' or 'auto' with several processes, saw {device!r}: each takes its own"
        )
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return None
    if local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"expected a CUDA device for each process, saw local rank {local_rank} and {torch.cuda.device_count()} "
            "devices: start fewer processes, or set device = 'cpu'"
        )
    return torch.device("cuda", local_rank)


def resolve_device(name: str) -> torch.device:
    """Return the device that a configuration names; "auto" prefers CUDA."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', saw {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device: {name!r} is not there: saw {torch.cuda.device_count()} CUDA devices")
    return device
