"""Importances by several processes: each measures its share of the batches, and the totals are added once."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar, final

import attrs
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from unlearnkit.errors import ConfigurationError, MismatchError, UnlearnKitError, raise_all
from unlearnkit.estimator import ImportanceEstimator
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective
from unlearnkit.parameters import device_of, digest, trainable
from unlearnkit.progress import Progress, silent
from unlearnkit.provenance import BatchTrail, Fingerprint, Role

T = TypeVar("T")


@final
@attrs.frozen(kw_only=True)
class Ranks:
    """How many processes work together, and which of them this is.

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
        """Ask torch.distributed.

        Returns:
            The ranks of the default process group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def share(self, batches: Iterable[T]) -> Iterable[T]:
        """Return every size-th batch: over all ranks each batch once, none dropped at the end.

        Args:
            batches: The same in the same order on every rank. Of a `torch.utils.data.DataLoader` only the rank's own
                batches are loaded.

        Returns:
            The rank's batches.
        """
        if self.size == 1:
            return batches
        if isinstance(batches, DataLoader) and batches.batch_sampler is not None:
            return self._own_batches(batches)
        return islice(batches, self.rank, None, self.size)

    def _own_batches(self, loader: DataLoader[T]) -> DataLoader[T]:
        assert loader.batch_sampler is not None, "checked by share()"
        return DataLoader(
            loader.dataset,
            batch_sampler=list(islice(loader.batch_sampler, self.rank, None, self.size)),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` has started, where it has: NCCL on CUDA, else gloo.

    Yields:
        This process among them; alone when there are no others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield Ranks.current()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process has come this far; at once when there is only one."""
    if Ranks.current().size > 1:
        dist.barrier()


def estimate_together(
    estimator: ImportanceEstimator,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    role: Role | str = Role.UNKNOWN,
    progress: Progress = silent,
) -> Importance:
    """Measure an importance with all processes of the default group; each gets the whole result.

    Totals are added once, at the end, in float64. For a float64 model they equal those of one process to 10⁻¹². Without
    other processes this is `unlearnkit.ImportanceEstimator.estimate`.

    Args:
        estimator: The same on every rank.
        model: Bit-identical on every rank.
        batches: The same in the same order on every rank; see `Ranks.share`.
        objective: How a batch becomes losses.
        role: Which set this is.
        progress: Shows a bar; on rank 0 only.

    Returns:
        The importance of all batches.

    Raises:
        ConfigurationError: No data.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        return estimator.estimate(model, batches, objective=objective, role=role, progress=progress)
    own, error = None, ""
    try:
        mine = list(ranks.share(batches)) if not isinstance(batches, DataLoader) else ranks.share(batches)
        if len(mine):  # type: ignore[arg-type]
            bar = progress if ranks.rank == 0 else silent
            own = estimator.estimate(model, mine, objective=objective, role=role, progress=bar)
    except Exception as problem:  # noqa: BLE001 - the other ranks wait: they must hear of it, whatever it is
        error = f"{type(problem).__name__}: {problem}"
    told = _gathered(_Told.of(own, error=error, model=digest(model)))
    _check(told)
    measured = [one for one in told if one.fingerprint is not None]
    if not measured:
        raise ConfigurationError("expected data for an importance, saw an empty iterable on every rank")
    totals = _added(model, own)
    return Importance(
        totals=totals,
        count=sum(one.count for one in told),
        samples=sum(one.samples for one in told),
        role=role,
        trail=_trail([one.trail for one in measured]),
        fingerprint=_in_float64(measured[0].fingerprint),
    )


@final
@attrs.frozen(kw_only=True)
class _Told:
    """What a rank tells the others before the totals are added."""

    model: str
    error: str = ""
    count: int = 0
    samples: int = 0
    fingerprint: Fingerprint | None = None
    trail: BatchTrail = attrs.field(factory=BatchTrail)

    @classmethod
    def of(cls, own: Importance | None, *, error: str, model: str) -> "_Told":
        if own is None:
            return cls(error=error, model=model)
        return cls(model=model, count=own.count, samples=own.samples, fingerprint=own.fingerprint, trail=own.trail)


def _gathered(mine: _Told) -> list[_Told]:
    ranks = Ranks.current()
    plain = {**attrs.asdict(mine, recurse=False), "trail": (dict(mine.trail.sizes), mine.trail.order)}
    found: list[Any] = [None] * ranks.size
    try:
        if dist.get_backend() == "gloo":
            dist.monitored_barrier(wait_all_ranks=True)  # names the ranks that are gone
        dist.all_gather_object(found, plain)
    except RuntimeError as error:
        raise UnlearnKitError(
            f"rank {ranks.rank}: another process is gone before the importances were added: {error}. Nothing was "
            "changed: start the job again"
        ) from error
    return [_Told(**{**one, "trail": BatchTrail(sizes=one["trail"][0], order=one["trail"][1])}) for one in found]


def _check(told: list[_Told]) -> None:
    failed = [f"rank {rank}: {one.error}" for rank, one in enumerate(told) if one.error]
    raise_all(failed, where="an importance on several ranks", error=UnlearnKitError)
    differ = [f"rank {rank}: {one.model}" for rank, one in enumerate(told) if one.model != told[0].model]
    if differ:
        raise MismatchError(f"expected the model {told[0].model} of rank 0 on every rank, saw {', '.join(differ)}")
    kinds = [one.fingerprint for one in told if one.fingerprint is not None]
    problems = [p for kind in kinds[1:] for p in kinds[0].differences(kind)]
    raise_all(problems, where="ranks that measure different things")


def _added(model: nn.Module, own: Importance | None) -> dict[str, torch.Tensor]:
    device, totals = device_of(model), {}
    for name, parameter in trainable(model).items():
        total = (
            torch.zeros(parameter.shape, dtype=torch.float64, device=device)
            if own is None
            else own.totals[name].to(torch.float64, copy=True).contiguous()
        )
        dist.all_reduce(total)
        totals[name] = total
    return totals


def _trail(trails: list[BatchTrail]) -> BatchTrail:
    """Add the batches; the order is a hash of what each rank saw."""
    sizes: dict[int, int] = {}
    for trail in trails:
        for size, times in trail.sizes.items():
            sizes[size] = sizes.get(size, 0) + times
    order = hashlib.blake2b("".join(trail.order for trail in trails).encode(), digest_size=16).hexdigest()
    return BatchTrail(sizes=sizes, order=order)


def _in_float64(fingerprint: Fingerprint | None) -> Fingerprint:
    assert fingerprint is not None, "only those that measured"
    gradients = fingerprint.precision.partition(",")[0]
    return attrs.evolve(fingerprint, precision=f"{gradients}, totals float64")
