"""Passes over data that survive being killed: what was measured is on disk, and the next start goes on from there."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from unlearnkit.errors import ConfigurationError, StoreError
from unlearnkit.estimator import ImportanceEstimator
from unlearnkit.importance import Importance
from unlearnkit.objective import Objective
from unlearnkit.progress import Progress, silent
from unlearnkit.provenance import BatchTrail, Role
from unlearnkit.store.store import ImportanceStore


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
    """Measure an importance and write down how far it is, after every so many batches.

    Killed at any moment and started again, it reads the batches that were done (their order is compared by hash, no
    gradient is taken), and goes on. On a CPU the totals are bit-equal to those of a pass that was not interrupted,
    because both add the same segments in the same order. The checkpoint stays: delete it when the result is safe.

    Args:
        estimator: Any whose terms are samples.
        model: As for `unlearnkit.ImportanceEstimator.estimate`.
        batches: The same in the same order at every start.
        objective: How a batch becomes losses.
        checkpoint: A file; its folder must exist.
        every: Batches in a segment; the same at every start.
        role: Which set this is.
        progress: Shows a bar for each segment.

    Returns:
        The importance.

    Raises:
        ConfigurationError: No data, or an estimator of batches.
    """
    if estimator.traits.unit != "sample":
        raise ConfigurationError(
            f"{estimator.name!r}: expected an estimator with one term per sample, saw one per batch"
        )
    path = Path(checkpoint)
    rest = iter(batches)
    total = _resumed(path, rest, every)
    while segment := list(islice(rest, every)):
        new = estimator.estimate(model, segment, objective=objective, role=role, progress=progress)
        total = new if total is None else total.merge(new)
        total.save(path)
    if total is None:
        raise ConfigurationError("expected data for an importance, saw an empty iterable")
    return total


def fill(
    store: ImportanceStore,
    estimator: ImportanceEstimator,
    model: nn.Module,
    data: Mapping[str, Iterable[Any]],
    *,
    objective: Objective,
    every: int = 50,
    progress: Progress = silent,
) -> None:
    """Measure every group that a store does not have yet, and put it there.

    A process that was killed is started again with the same arguments: groups that are there are left out, and the one
    that was under way goes on from its last segment.

    Args:
        store: Where to.
        estimator: Any whose terms are samples.
        model: The trained model.
        data: Group to its batches.
        objective: How a batch becomes losses.
        every: See `estimate_resumable`.
        progress: Shows a bar for each segment.
    """
    for key, batches in data.items():
        part = store.folder / f"{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}.part"
        if key not in store.keys:
            found = estimate_resumable(
                estimator, model, batches, objective=objective, checkpoint=part, every=every, progress=progress
            )
            store.put(key, found)
        part.unlink(missing_ok=True)


def _resumed(path: Path, rest: Iterator[Any], every: int) -> Importance | None:
    """Load what was measured and read past it, or return None where there is nothing yet."""
    if not path.exists():
        return None
    total = Importance.load(path)
    done, seen = sum(total.trail.sizes.values()), BatchTrail()
    for start in range(0, done, every):
        part = BatchTrail()
        for batch in islice(rest, min(every, done - start)):
            part = part.add(batch)
        seen = seen.then(part)
    if seen != total.trail:
        raise StoreError(
            f"{path} was written by a pass over other data, or with another `every`: expected "
            f"{total.trail.describe()}, hash {total.trail.order}, saw {seen.describe()}, hash {seen.order}: delete it "
            "to begin again"
        )
    return total
