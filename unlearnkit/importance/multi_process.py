"""Importances in parts: by several processes that add their totals once, in segments that can be resumed, by group."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import nn

from unlearnkit.distributed.collectives import Ranks, all_gather, raise_on_all_ranks
from unlearnkit.distributed.sharded_tensors import is_sharded_model
from unlearnkit.importance.estimator import ImportanceEstimator, check_data, fingerprint_of
from unlearnkit.importance.importance import Importance, counts_of_sum
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role, check_same_on_every_rank
from unlearnkit.importance.store.store import ImportanceStore, check_key
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of, digest, trainable
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitError, UnsupportedModelError, raise_all
from unlearnkit.utils.files import is_temporary
from unlearnkit.utils.progress import Progress, silent


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
    """Estimate an importance with all processes of the default group; each gets the whole result.

    Each rank takes its share of the batches. Totals are added once, at the end, in float64: for a float64 model they
    equal those of one process to 10⁻¹². Estimator, model, batches and their order must be the same on every rank. In a
    single process, and for a model that is sharded over the processes, this is
    `unlearnkit.ImportanceEstimator.estimate`.

    With a checkpoint, a folder for this pass only, each rank saves its progress after every ``every`` batches, as
    `estimate_resumable` does. A job that was killed continues when it is started with the same arguments and as many
    processes; on CPUs the totals are then bit-equal to those of a job that was not interrupted. The files stay: see
    `forget_parts`.

    Raises:
        ConfigurationError: No data.
        StoreError: The checkpoint is of other data, another model, or another number of processes.
        UnsupportedModelError: A checkpoint for a model that is sharded.
    """
    ranks, folder = Ranks.current(), None if checkpoint is None else Path(checkpoint)
    sharded = is_sharded_model(model)
    if sharded and folder is not None:
        raise UnsupportedModelError("expected no checkpoint for an importance of a model that is sharded, saw one")
    if sharded:
        return estimator.estimate(model, batches, objective=objective, role=role, progress=progress)
    bar = progress if ranks.rank == 0 else silent

    def estimate(mine: Iterable[Any]) -> Importance:
        if folder is None:
            return estimator.estimate(model, mine, objective=objective, role=role, progress=bar)
        part = _part_file(folder, ranks)
        return estimate_resumable(
            estimator, model, mine, objective=objective, checkpoint=part, every=every, role=role, progress=bar
        )

    if ranks.size == 1:
        return estimate(batches)
    own, error = None, ""
    check_data(batches, Role(role))
    batches = check_same_on_every_rank(batches, digest(model))
    try:
        mine = _none_if_empty(ranks.share(batches))
        own = None if mine is None else estimate(mine)
    except Exception as problem:  # noqa: BLE001 - the other ranks wait, and must raise it too
        error = f"{type(problem).__name__}: {problem}"
    facts = None if own is None else attrs.evolve(own, totals={"": torch.zeros(())})  # all but the totals
    errors, parts = zip(*all_gather((error, facts)), strict=True)
    found: list[Importance] = [part for part in parts if part is not None]
    _check(errors, found)
    if not found:
        raise ConfigurationError("expected data for an importance, saw an empty iterable on every rank")
    return Importance(
        totals=_all_reduce(model, own),
        role=role,
        trail=_merged_trail([part.trail for part in found]),
        fingerprint=_in_float64(found[0].fingerprint),
        **counts_of_sum(found),
    )


def forget_parts(checkpoint: str | Path) -> None:
    """Delete this rank's checkpoint, when the result is saved; the last rank deletes the folder."""
    folder, ranks = Path(checkpoint), Ranks.current()
    for path in (folder / _part_name(ranks), *filter(is_temporary, folder.glob(".*.tmp"))):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty: other ranks have yet to delete theirs
        folder.rmdir()


def _part_name(ranks: Ranks) -> str:
    return f"rank-{ranks.rank}-of-{ranks.size}.part"


def _part_file(folder: Path, ranks: Ranks) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path.name for path in folder.glob("rank-*-of-*.part")]
    except OSError as error:
        raise StoreError(f"cannot write the checkpoint of an importance to {folder}: {error}") from error
    others = sorted(name for name in found if not name.endswith(f"-of-{ranks.size}.part"))
    if others:
        raise StoreError(
            f"{folder} holds parts of a pass by another number of processes: expected {ranks.size}, saw {others[0]}: "
            "start as many again to go on, or delete the folder to begin again"
        )
    return folder / _part_name(ranks)


def _none_if_empty(batches: Iterable[Any]) -> Iterable[Any] | None:
    """Return the same batches, or None when there are none: fewer than ranks."""
    if isinstance(batches, Sized):
        return batches if len(batches) else None
    rest = iter(batches)
    first = list(islice(rest, 1))
    return chain(first, rest) if first else None


def _check(errors: Sequence[str], parts: list[Importance]) -> None:
    failed = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
    raise_all(failed, where="an importance on several ranks", error=UnlearnKitError)
    problems = [p for part in parts[1:] for p in parts[0].fingerprint.differences(part.fingerprint)]
    raise_all(problems, where="ranks that measure different things")


def _all_reduce(model: nn.Module, own: Importance | None) -> dict[str, torch.Tensor]:
    """Add the totals of all ranks in float64."""
    device, totals = device_of(model), {}
    for name, parameter in trainable(model).items():
        totals[name] = torch.zeros(parameter.shape, dtype=torch.float64, device=device)
        if own is not None:
            totals[name] += own.totals[name]
        dist.all_reduce(totals[name])
    return totals


def _merged_trail(trails: list[DataOrder]) -> DataOrder:
    """Add the batch sizes; the order is a hash of the ranks' hashes."""
    sizes = sum((Counter(trail.sizes) for trail in trails), Counter[int]())
    order = hashlib.blake2b("".join(trail.order for trail in trails).encode(), digest_size=16).hexdigest()
    return DataOrder(sizes=sizes, order=order)


def _in_float64(fingerprint: Fingerprint) -> Fingerprint:
    return attrs.evolve(fingerprint, precision=re.sub(r"totals [^,]+", "totals float64", fingerprint.precision))


def estimate_resumable(
    estimator: ImportanceEstimator,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    objective: Objective,
    checkpoint: str | Path,
    every: int = 50,
    role: Role | str = Role.UNKNOWN,
    progress: Progress = silent,
) -> Importance:
    """Estimate an importance, and save it to a file after every segment of batches.

    After a kill, call it again with the same arguments: it reads the batches that are done (to compare a hash of their
    order) and continues. On a CPU the totals are bit-equal to those of a pass that was not interrupted, because both
    add the same segments in the same order. The caller deletes the checkpoint.
    """
    if estimator.traits.unit != "sample":
        who = f"{estimator.name!r}: expected an estimator with one term per sample"
        raise ConfigurationError(f"{who}, saw one per batch")
    if every < 1:
        raise ConfigurationError(f"every: expected at least one batch in a segment, saw {every}")
    check_data(batches, Role(role))
    path, rest = Path(checkpoint), iter(batches)
    total = Importance.load(path).to(device_of(model)) if path.exists() else None
    if total is not None:
        _check_kind(path, total, fingerprint_of(estimator, digest(model), objective=objective))
        _skip_done(path, total, rest, every)
    while segment := list(islice(rest, every)):
        new = estimator.estimate(model, segment, objective=objective, role=role, progress=progress)
        total = new if total is None else total.merge(new)
        total.save(path)
    if total is None:
        raise ConfigurationError("expected data for an importance, saw an empty iterable")
    return total


def _check_kind(path: Path, total: Importance, expected: Fingerprint) -> None:
    seen = attrs.evolve(total.fingerprint, precision="")  # known only at the end of a pass
    where = f"{path} was written by a pass over another model, or of another kind: delete it to begin again"
    raise_all(expected.differences(seen), where=where, error=StoreError)


def _skip_done(path: Path, total: Importance, rest: Iterator[Any], every: int) -> None:
    """Read the batches that are done; raise an error when they are not those of the checkpoint."""
    done, seen = sum(total.trail.sizes.values()), DataOrder()
    for start in range(0, done, every):
        part = DataOrder()
        for batch in islice(rest, min(every, done - start)):
            part = part.add(batch)
        seen = seen.then(part)
    if seen != total.trail:
        raise StoreError(
            f"{path} was written by a pass over other data, or with another `every`: expected "
            f"{total.trail.describe()}, hash {total.trail.order}, saw {seen.describe()}, hash {seen.order}: delete it "
            "to begin again"
        )


def fill(
    store: ImportanceStore,
    estimator: ImportanceEstimator,
    model: nn.Module,
    data: Mapping[str, Iterable[Any]],
    *,
    objective: Objective,
    every: int = 50,
    together: bool = False,
    progress: Progress = silent,
) -> None:
    """Measure every group that a store does not have yet, with one term per sample, and put it there.

    ``data`` has the batches of each group. After a kill, call it again with the same arguments: groups that are there
    are skipped, and the one that was under way continues after its last segment of ``every`` batches. With ``together``
    all processes of torch.distributed call this with the same arguments, and the first one writes. A symbolic link
    where a pass saves its progress is a `StoreError`.
    """
    estimate = estimate_together if together else estimate_resumable
    for key, batches in data.items():
        check_key(key)
        name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        # A file, or a folder with a file for each rank.
        part = store.folder / (f"{name}.parts" if together else f"{name}.part")
        if part.is_symlink():
            raise StoreError(f"{part}: expected no symbolic link, saw one: somebody has put it there")
        known = key in store.keys
        if not (all_gather(known)[0] if together else known):  # as rank 0 sees it: it may have written already
            found = estimate(
                estimator, model, batches, objective=objective, checkpoint=part, every=every, progress=progress
            )
            with raise_on_all_ranks() if together else nullcontext():
                if not together or Ranks.current().rank == 0:
                    store.put(key, found)
        if together:
            forget_parts(part)
        else:
            part.unlink(missing_ok=True)
