"""Fills a store: one resumable pass for each group."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import nn

from unlearnkit.distributed.collectives import Ranks, all_gather, raise_on_all_ranks
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.multi_process import estimate_resumable, estimate_together, forget_parts
from unlearnkit.importance.store.store import ImportanceStore
from unlearnkit.models.objective import Objective
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.progress import Progress, silent


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
    """Measure every group that a store does not have yet, and put it there.

    After a kill, call it again with the same arguments: groups that are there are skipped, and the one that was under
    way continues after its last segment.

    Args:
        store: Gets the importances.
        estimator: Any whose terms are samples.
        model: The trained model.
        data: Group to its batches.
        objective: How a batch becomes losses.
        every: See `estimate_resumable`; of each process, where there are several.
        together: Whether all processes of torch.distributed call this with the same arguments; the first one writes.
        progress: Shows a bar for each segment.

    Raises:
        StoreError: A symbolic link stands where a pass saves its progress.
    """
    estimate = estimate_together if together else estimate_resumable
    for key, batches in data.items():
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
