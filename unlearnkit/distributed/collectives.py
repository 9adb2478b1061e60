"""Work that several processes share: each does a part, and every one hears all results, and every error."""

import itertools
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, final

import attrs
import torch
import torch.distributed as dist
from torch import nn

from unlearnkit.distributed.ranks import Ranks, alone
from unlearnkit.distributed.sharded_tensors import is_spread
from unlearnkit.utils.errors import UnlearnKitError

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = timedelta(days=1)  # shares of a long pass end hours apart; a process that is gone is noticed at once
_HEARD = "heard_by_all"  # of an exception: every rank has it


@final
@attrs.frozen(kw_only=True, eq=False)
class Shared:
    """Batches that all ranks go through together: each measures on its share, and hears the results of the others.

    Hand it to a function of `unlearnkit.evaluation` on every rank, or on none: each waits for the others. Whoever does
    not know of ranks sees all batches.

    Attributes:
        items: The same in the same order on every rank.

    Example:
        >>> list(Shared(items="abc"))
        ['a', 'b', 'c']
    """

    items: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]  # a TypeError, where there is no length


def wait_for_all() -> None:
    """Go on when every process has come this far; at once when there is only one."""
    tell(None)


def tell(mine: T, *, failure: Exception | None = None, place: int = 0) -> list[T]:
    """Tell every rank something, and hear what each has to tell.

    Args:
        mine: What can be pickled.
        failure: What went wrong here, to be raised on every rank.
        place: Where it went wrong: of several failures the one with the smallest place is raised.

    Returns:
        What each told, by rank.

    Raises:
        Exception: A rank's failure.
        UnlearnKitError: A process is gone, named where it is known.
    """
    ranks = Ranks.current()
    heard = [(place, failure, mine)] if ranks.size == 1 else _gathered((place, _portable(failure), mine), ranks)
    failed = [(at, rank) for rank, (at, error, _) in enumerate(heard) if error is not None]
    if failed:
        first = min(failed)[1]
        raised = failure if first == ranks.rank else heard[first][1]
        assert raised is not None, "only those that failed"
        raised.add_note(f"on rank {first} of {ranks.size}")
        setattr(raised, _HEARD, True)
        raise raised
    return [told for _, _, told in heard]


def _gathered(mine: T, ranks: Ranks) -> list[T]:
    heard: list[Any] = [None] * ranks.size
    try:
        with suppress(ValueError):  # a group without a CPU's backend, which cannot say who is gone
            dist.monitored_barrier(timeout=_PATIENCE, wait_all_ranks=True)
        dist.all_gather_object(heard, mine)
    except RuntimeError as error:
        raise _gone(ranks, error) from error
    return heard


@contextmanager
def missing_nobody() -> Iterator[None]:
    """Say who is gone, where an operation of all processes breaks off because one is."""
    try:
        yield
    except RuntimeError as error:
        ranks = Ranks.current()
        if ranks.size == 1 or not re.search(r"Connection (closed|reset)|[Tt]imed out", str(error)):
            raise
        gone = _gone(ranks, error)
        raise gone from error


def _gone(ranks: Ranks, error: RuntimeError) -> UnlearnKitError:
    gone = UnlearnKitError(
        f"rank {ranks.rank}: {_who(ranks, error)} gone: killed, or ended by an error. Nothing is half-written: "
        "start the job again"
    )
    setattr(gone, _HEARD, True)  # there is nobody left to tell
    return gone


def _who(ranks: Ranks, error: RuntimeError) -> str:
    named = re.search(r"Ranks ([\d, ]+) failed to pass", str(error))
    gone = named[1].split(", ") if named else [str(r) for r in range(ranks.size) if _is_gone(r, ranks)]
    if not gone:
        return "another process is"
    return f"rank {gone[0]} is" if len(gone) == 1 else f"ranks {', '.join(gone)} are"


def _is_gone(rank: int, ranks: Ranks) -> bool:
    """Knock: a connection that is closed says so at once. Nobody opens; the job ends here anyway."""
    if rank == ranks.rank:
        return False
    try:
        dist.isend(torch.zeros(1), rank, tag=1)
    except (RuntimeError, ValueError) as error:
        return "No backend type" not in str(error)  # NCCL alone cannot send from a CPU
    return False


def in_shares(items: Iterable[T], work: Callable[[Iterable[T], Iterator[int]], Iterable[R]]) -> list[R]:
    """Do a piece of work for each item, every rank for its share; each gets all results, in the order of the items.

    Inside ``work`` a rank is alone: what it calls must not wait for the others.

    Args:
        items: The same in the same order on every rank.
        work: Takes some of the items, and their numbers in the whole; yields one result for each, which can be pickled.

    Returns:
        One result for each item.

    Raises:
        Exception: What ``work`` raised, on every rank; where several failed, at the first item. See `tell`.

    Example:
        >>> in_shares([3, 4], lambda own, numbers: (n * n for n in own))
        [9, 16]
    """
    ranks, results = Ranks.current(), list[R]()
    if ranks.size == 1:
        return list(work(items, itertools.count()))
    failure: Exception | None = None
    try:
        with alone():
            for result in work(ranks.share(items), itertools.count(ranks.rank, ranks.size)):
                results.append(result)  # one by one: what came before an error says where it was
    except Exception as error:  # noqa: BLE001 - the other ranks wait: they must hear of it, whatever it is
        failure = error
    parts = tell(results, failure=failure, place=len(results) * ranks.size + ranks.rank)
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def for_each(
    items: Iterable[T], work: Callable[[Iterable[T], Iterator[int]], Iterable[R]], *, model: nn.Module
) -> list[R]:
    """Do a piece of work for each item: of `Shared` items each rank its share, of any others all here.

    Args:
        items: Batches, say.
        work: See `in_shares`.
        model: What it is done with. One whose parameters are sharded needs all ranks at every step: then each rank does
            all the work, together with the others.

    Returns:
        One result for each item, in their order.
    """
    if isinstance(items, Shared) and not is_spread(model):
        return in_shares(items.items, work)
    return list(work(items, itertools.count()))


@contextmanager
def agreed() -> Iterator[None]:
    """Leave a block when every rank has left it; an exception on one is raised on all.

    Yields:
        Nothing.

    Raises:
        Exception: What was raised on a rank. See `tell`.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        if Ranks.current().size == 1 or getattr(error, _HEARD, False):
            raise
        failure = error
    tell(None, failure=failure)


def _portable(error: Exception | None) -> Exception | None:
    try:
        sent: Exception | None = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an exception of anybody's may not survive it
        return UnlearnKitError(f"{type(error).__name__}: {error}")
    return sent
