"""Importances that are saved as they grow, so that a killed pass can be resumed."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from unlearnkit.importance.estimator import ImportanceEstimator, fingerprint_of
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint, Role
from unlearnkit.models.objective import Objective
from unlearnkit.models.parameters import device_of, digest
from unlearnkit.utils.errors import ConfigurationError, StoreError, raise_all
from unlearnkit.utils.progress import Progress, silent


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

    After a kill, call it again with the same arguments: it reads the batches that are done (without gradients, to
    compare a hash of their order) and continues. On a CPU the totals are bit-equal to those of a pass that was not
    interrupted, because both add the same segments in the same order. The caller deletes the checkpoint.
    """
    if estimator.traits.unit != "sample":
        raise ConfigurationError(
            f"{estimator.name!r}: expected an estimator with one term per sample, saw one per batch"
        )
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
    """Read the batches that are done, and raise an error when they are others."""
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
