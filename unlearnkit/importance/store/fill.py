"""Fills a store: one pass for each group, which can be resumed after a kill."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from unlearnkit.distributed.collectives import Ranks, all_gather, raise_on_all_ranks
from unlearnkit.importance.estimator import ImportanceEstimator
from unlearnkit.importance.importance import Importance
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
        store: Where to.
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
    put = _put_together if together else _put
    for key, batches in data.items():
        name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        measure = partial(estimate, estimator, model, batches, objective=objective, every=every, progress=progress)
        part = store.folder / f"{name}.part"
        if part.is_symlink() or part.with_suffix(".parts").is_symlink():
            raise StoreError(f"{part}: expected a file or nothing, saw a symbolic link: somebody has put it there")
        put(store, key, part, measure)


def _put(store: ImportanceStore, key: str, part: Path, measure: Callable[..., Importance]) -> None:
    if key not in store.keys:
        store.put(key, measure(checkpoint=part))
    part.unlink(missing_ok=True)


def _put_together(store: ImportanceStore, key: str, part: Path, measure: Callable[..., Importance]) -> None:
    parts = part.with_suffix(".parts")  # a folder: each rank writes a file of its own
    if not all_gather(key in store.keys)[0]:  # as rank 0 sees it: it may have written already
        found = measure(checkpoint=parts)
        with raise_on_all_ranks():
            if Ranks.current().rank == 0:
                store.put(key, found)
    forget_parts(parts)
