"""Importances by several processes: each measures its share of the batches, and the totals are added once."""

import hashlib
from collections.abc import Iterable, Sized
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, final

import attrs
import torch
import torch.distributed as dist
from torch import nn

from unlearnkit.distributed.collectives import Shared, tell, wait_for_all
from unlearnkit.distributed.ranks import Ranks, joined
from unlearnkit.distributed.sharded_tensors import is_spread
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role
from unlearnkit.importance.relative_error import of_sum
from unlearnkit.importance.resumable import estimate_resumable
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of, digest, trainable
from unlearnkit.utils.errors import (
    ConfigurationError,
    MismatchError,
    StoreError,
    UnlearnKitError,
    UnsupportedModelError,
    raise_all,
)
from unlearnkit.utils.progress import Progress, silent

__all__ = ["Ranks", "Shared", "estimate_together", "forget_parts", "joined", "wait_for_all"]


def estimate_together(
    estimator: ImportanceEstimator,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    role: Role | str = Role.UNKNOWN,
    checkpoint: str | Path | None = None,
    every: int = 50,
    progress: Progress = silent,
) -> Importance:
    """Measure an importance with all processes of the default group; each gets the whole result.

    Totals are added once, at the end, in float64. For a float64 model they equal those of one process to 10⁻¹². Without
    other processes this is `unlearnkit.ImportanceEstimator.estimate`.

    With a checkpoint each rank writes down how far it is, in a file of its own, as
    `estimate_resumable` does. A job that was killed is started again with the same arguments and as
    many processes: each rank goes on from its last segment, and on CPUs the totals are bit-equal to those of a job
    that was not interrupted. The files stay: see `forget_parts`.

    A model whose parameters are sharded over the processes needs all of them for each batch: there is nothing to share
    out, and this is `unlearnkit.ImportanceEstimator.estimate` again.

    Args:
        estimator: The same on every rank.
        model: Bit-identical on every rank.
        batches: The same in the same order on every rank; see `Ranks.share`.
        objective: How a batch becomes losses.
        role: Which set this is.
        checkpoint: A folder for this pass alone, made when it is first needed; of every machine its own, or shared.
        every: Batches of a rank after which it writes; the same at every start.
        progress: Shows a bar; on rank 0 only.

    Returns:
        The importance of all batches.

    Raises:
        ConfigurationError: No data.
        StoreError: The checkpoint is of other data, another model, or another number of processes.
        UnsupportedModelError: A checkpoint for a model that is sharded.
    """
    ranks, folder = Ranks.current(), None if checkpoint is None else Path(checkpoint)
    spread = is_spread(model)
    if spread and folder is not None:
        raise UnsupportedModelError("expected no checkpoint for an importance of a model that is sharded, saw one")
    if spread or (ranks.size == 1 and folder is None):
        return estimator.estimate(model, batches, objective=objective, role=role, progress=progress)
    own, error, bar = None, "", progress if ranks.rank == 0 else silent

    def measured(mine: Iterable[Any]) -> Importance:
        if folder is None:
            return estimator.estimate(model, mine, objective=objective, role=role, progress=bar)
        part = _part_of(folder, ranks)
        return estimate_resumable(
            estimator, model, mine, objective=objective, checkpoint=part, every=every, role=role, progress=bar
        )

    if ranks.size == 1:
        return measured(batches)
    try:
        mine = _or_none(ranks.share(batches))
        own = None if mine is None else measured(mine)
    except Exception as problem:  # noqa: BLE001 - the other ranks wait: they must hear of it, whatever it is
        error = f"{type(problem).__name__}: {problem}"
    told = tell(_Told.of(own, error=error, model=digest(model)))
    _check(told)
    found = [one for one in told if one.fingerprint is not None]
    if not found:
        raise ConfigurationError("expected data for an importance, saw an empty iterable on every rank")
    return Importance(
        totals=_added(model, own),
        count=sum(one.count for one in told),
        samples=sum(one.samples for one in told),
        role=role,
        trail=_trail([one.trail for one in found]),
        relative_error=of_sum((one.relative_error, one.samples) for one in found),
        fingerprint=_in_float64(found[0].fingerprint),
    )


def forget_parts(checkpoint: str | Path) -> None:
    """Delete what this rank wrote down of a pass, and what a kill has left of it; the last rank deletes the folder.

    Call it when all ranks have the result, and it is safe.

    Args:
        checkpoint: See `estimate_together`.
    """
    folder, ranks = Path(checkpoint), Ranks.current()
    for path in (folder / _part_name(ranks), *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the last one finds it empty
        folder.rmdir()


def _part_name(ranks: Ranks) -> str:
    return f"rank-{ranks.rank}-of-{ranks.size}.part"


def _part_of(folder: Path, ranks: Ranks) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path.name for path in folder.glob("rank-*-of-*.part")]
    except OSError as error:
        raise StoreError(f"cannot write down how far the importance is in {folder}: {error}") from error
    others = sorted(name for name in found if not name.endswith(f"-of-{ranks.size}.part"))
    if others:
        raise StoreError(
            f"{folder} holds parts of a pass by another number of processes: expected {ranks.size}, saw {others[0]}: "
            "start as many again to go on, or delete the folder to begin again"
        )
    return folder / _part_name(ranks)


def _or_none(batches: Iterable[Any]) -> Iterable[Any] | None:
    """Return the same batches; None where there are none: there may be fewer than ranks."""
    if isinstance(batches, Sized):
        return batches if len(batches) else None
    rest = iter(batches)
    first = list(islice(rest, 1))
    return chain(first, rest) if first else None


@final
@attrs.frozen(kw_only=True)
class _Told:
    """What a rank tells the others before the totals are added."""

    model: str
    error: str = ""
    count: int = 0
    samples: int = 0
    fingerprint: Fingerprint | None = None
    trail: DataOrder = attrs.field(factory=DataOrder)
    relative_error: float | None = 0.0

    @classmethod
    def of(cls, own: Importance | None, *, error: str, model: str) -> "_Told":
        if own is None:
            return cls(error=error, model=model)
        return cls(
            model=model,
            count=own.count,
            samples=own.samples,
            fingerprint=own.fingerprint,
            trail=own.trail,
            relative_error=own.relative_error,
        )


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


def _trail(trails: list[DataOrder]) -> DataOrder:
    """Add the batches; the order is a hash of what each rank saw."""
    sizes: dict[int, int] = {}
    for trail in trails:
        for size, times in trail.sizes.items():
            sizes[size] = sizes.get(size, 0) + times
    order = hashlib.blake2b("".join(trail.order for trail in trails).encode(), digest_size=16).hexdigest()
    return DataOrder(sizes=sizes, order=order)


def _in_float64(fingerprint: Fingerprint | None) -> Fingerprint:
    assert fingerprint is not None, "only those that measured"
    gradients = fingerprint.precision.partition(",")[0]
    return attrs.evolve(fingerprint, precision=f"{gradients}, totals float64")
