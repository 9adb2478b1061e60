"""This process's rank and device, collectives that carry each rank's error, and maps that split work over the ranks."""

import itertools
import math
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, final

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from unlearnkit.distributed.sharded_tensors import is_sharded_model
from unlearnkit.utils.errors import ConfigurationError, UnlearnKitError

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Iterable[T], Iterator[int]], Iterable[R]]
"""Takes some of the items, and the index of each among all of them; yields one picklable result for each."""

_TIMEOUT = timedelta(days=1)  # ranks may finish their parts of a long pass hours apart; a dead rank is noticed at once
_RAISED_EVERYWHERE = "raised_on_all_ranks"  # attribute of an exception that every rank has
_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


@final
@attrs.frozen(kw_only=True)
class Ranks:
    """This process's rank, 0 … size − 1, and the number of processes, 1 when torch.distributed is not in use.

    Examples:
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
        drawn = batch_indices(batches)
        if drawn is not None:
            return in_order(batches, list(itertools.islice(drawn, self.rank, None, self.size)))
        return itertools.islice(batches, self.rank, None, self.size)


def batch_indices(batches: Iterable[Any]) -> Iterable[list[Any]] | None:
    """Return the batches of indices that a loader draws, where `in_order` can rebuild it."""
    if not isinstance(batches, DataLoader) or type(batches).__iter__ is not DataLoader.__iter__:
        return None  # an __iter__ of its own may change the batches
    # The sampler of an iterable data set is a dummy without end.
    return None if isinstance(batches.dataset, IterableDataset) else batches.batch_sampler


def in_order(batches: Any, indices: list[Any]) -> "DataLoader[Any]":
    """Return a loader of the same data set for these batches of indices."""
    return DataLoader(
        batches.dataset,
        batch_sampler=indices,
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
    """Join the process group of ``torchrun``, if it started this process: NCCL on CUDA, gloo on a CPU.

    Each process takes the CUDA device of its local rank; fewer devices than processes are a `ConfigurationError`.
    ``device`` is "auto", "cpu" or "cuda".
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


@final
@attrs.frozen(kw_only=True, eq=False)
class Shared:
    """Batches, the same on every rank, of which each rank evaluates its share and gets the results of all.

    Pass it to a function of `unlearnkit.evaluation` on every rank or on none, because each waits for the others. Any
    other code sees all batches.

    Examples:
        >>> list(Shared(items="abc"))
        ['a', 'b', 'c']
    """

    items: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # a TypeError, where there is no length


def barrier() -> None:
    """Wait until every rank has come this far."""
    all_gather(None)


def all_gather(value: T, *, error: Exception | None = None, position: int = 0) -> list[T]:
    """Gather one picklable value from every rank, in order; raise on all ranks when one reports an error or is dead.

    Raises:
        Exception: The ``error`` of a rank; of several, the one with the smallest position, then rank.
        UnlearnKitError: A rank is dead; the message names it where it is known.
    """
    ranks = Ranks.current()
    mine = (position, error if ranks.size == 1 else _picklable(error), value)
    found = [mine] if ranks.size == 1 else _gather_objects(mine, ranks)
    failed = [(at, rank) for rank, (at, problem, _) in enumerate(found) if problem is not None]
    if failed:
        first = min(failed)[1]
        raised = error if first == ranks.rank else found[first][1]
        assert raised is not None, "only those that failed"
        raised.add_note(f"on rank {first} of {ranks.size}")
        setattr(raised, _RAISED_EVERYWHERE, True)
        raise raised
    return [one for _, _, one in found]


def _gather_objects(value: T, ranks: Ranks) -> list[T]:
    found: list[Any] = [None] * ranks.size
    try:
        with suppress(ValueError):  # a group without gloo, which cannot say which rank is dead
            dist.monitored_barrier(timeout=_TIMEOUT, wait_all_ranks=True)
        dist.all_gather_object(found, value)
    except RuntimeError as error:
        raise _dead_rank_error(ranks, error) from error
    return found


def _picklable(error: Exception | None) -> Exception | None:
    try:
        copied: Exception | None = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - exceptions of other packages may not survive pickling
        return UnlearnKitError(f"{type(error).__name__}: {error}")
    return copied


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Barrier at the end of the block; an exception on one rank is raised on every rank, see `all_gather`."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if Ranks.current().size == 1 or getattr(error, _RAISED_EVERYWHERE, False):
            raise
        failure = error
    all_gather(None, error=failure)


@contextmanager
def name_dead_ranks() -> Iterator[None]:
    """Turn a collective that failed because of a dead rank into an error that names the rank."""
    try:
        yield
    except RuntimeError as error:
        ranks = Ranks.current()
        if ranks.size == 1 or not re.search(r"Connection (closed|reset)|[Tt]imed out", str(error)):
            raise
        raise _dead_rank_error(ranks, error) from error


def _dead_rank_error(ranks: Ranks, error: RuntimeError) -> UnlearnKitError:
    named = re.search(r"Ranks ([\d, ]+) failed to pass", str(error))
    dead = named[1].split(", ") if named else [str(r) for r in range(ranks.size) if _is_dead(r, ranks)]
    who = f"rank {dead[0]} is" if len(dead) == 1 else f"ranks {', '.join(dead)} are" if dead else "another process is"
    found = UnlearnKitError(
        f"rank {ranks.rank}: {who} dead: killed, or ended by an error. No file is half-written: start the job again"
    )
    setattr(found, _RAISED_EVERYWHERE, True)  # a collective about it would fail too
    return found


def _is_dead(rank: int, ranks: Ranks) -> bool:
    """Probe a peer with isend: a closed connection raises. Nothing receives it; the job ends here anyway."""
    if rank == ranks.rank:
        return False
    try:
        dist.isend(torch.zeros(1), rank, tag=1)
    except (RuntimeError, ValueError) as error:
        return "No backend type" not in str(error)  # NCCL alone cannot send from a CPU
    return False


def map_over_ranks(items: Iterable[T], work: Callable[[T], R]) -> list[R]:
    """Split items, the same on every rank, over the ranks; gather the picklable results in the order of the items.

    Inside ``work`` a rank is `alone`: what it calls must not wait for the others. Of several exceptions that it raises,
    that of the first item is raised on every rank.

    Examples:
        >>> map_over_ranks([3, 4], lambda n: n * n)
        [9, 16]
    """
    return _map_over_ranks(items, lambda mine, _: map(work, mine))


def _map_over_ranks(items: Iterable[T], work: Work[T, R]) -> list[R]:
    ranks, results = Ranks.current(), list[R]()
    if ranks.size == 1:
        return list(work(items, itertools.count()))
    failure: Exception | None = None
    try:
        with alone():
            for result in work(ranks.share(items), itertools.count(ranks.rank, ranks.size)):
                results.append(result)  # one by one: their number says at which item an error came
    except Exception as error:  # noqa: BLE001 - the other ranks wait, and must raise it too
        failure = error
    parts = all_gather(results, error=failure, position=len(results) * ranks.size + ranks.rank)
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def map_shared(items: Iterable[T], work: Work[T, R], *, model: nn.Module) -> list[R]:
    """Map `Shared` items over the ranks; other items, and those of a sharded model, in every process."""
    if isinstance(items, Shared) and not is_sharded_model(model):
        return _map_over_ranks(items.items, work)
    return list(work(items, itertools.count()))


def gather_problems(problems: Iterable[str]) -> list[str]:
    """Collect the problems of all ranks, those that all have once, so that all ranks raise when one would."""
    found = all_gather(list(problems))
    common = [p for p in found[0] if all(p in others for others in found)]
    return common + [f"rank {rank}: {p}" for rank, some in enumerate(found) for p in some if p not in common]


def all_reduce_sum(numbers: Sequence[int], *, device: torch.device) -> list[int]:
    """Add each of some integers over all ranks."""
    sums = torch.tensor(list(numbers), dtype=torch.int64, device=device)
    dist.all_reduce(sums)
    return [int(n) for n in sums.cpu()]


def all_reduce_min_max(low: float, high: float, *, device: torch.device) -> tuple[float, float]:
    """Return the minimum and the maximum over all ranks: both NaN when one is."""
    bad = math.isnan(low) or math.isnan(high)
    mine = [math.inf if bad else -low, math.inf if bad else high, float(bad)]
    ends = torch.tensor(mine, dtype=torch.float64, device=device)
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    least, most, any_bad = (float(end) for end in ends.cpu())
    return (math.nan, math.nan) if any_bad else (-least, most)
