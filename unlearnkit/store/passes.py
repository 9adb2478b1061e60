"""The importances of a whole store: one pass for each group, which survives being killed."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from unlearnkit.estimator import ImportanceEstimator
from unlearnkit.objective import Objective
from unlearnkit.progress import Progress, silent
from unlearnkit.resuming import estimate_resumable
from unlearnkit.store.store import ImportanceStore


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
