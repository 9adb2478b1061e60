"""Batches of two sets in one pass, and data loaders read in another order."""

from collections.abc import Iterable, Iterator
from typing import Any, final

import attrs
import torch
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.progress import length


@final
@attrs.frozen(kw_only=True, eq=False)
class Paired:
    """Batches of the retain set, each with one of the forget set, which starts again when it is used up.

    Attributes:
        retain: Batches of D_r; there are as many pairs as of these.
        forget: Batches of D_f.

    Example:
        >>> list(Paired(retain=["r1", "r2", "r3"], forget=["f1", "f2"]))
        [('r1', 'f1'), ('r2', 'f2'), ('r3', 'f1')]
    """

    retain: Iterable[Any]
    forget: Iterable[Any]

    def __len__(self) -> int:
        return len(self.retain)  # type: ignore[arg-type]  # a TypeError says that it is not known

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.retain, _again(self.forget), strict=False)


@final
@attrs.frozen(kw_only=True, eq=False)
class Interleaved:
    """Every batch of two sets once, evenly mixed where their numbers are known, else in turn.

    Attributes:
        retain: Batches of D_r.
        forget: Batches of D_f.

    Example:
        >>> list(Interleaved(retain=["r1", "r2", "r3", "r4"], forget=["f1"]))
        [(False, 'r1'), (False, 'r2'), (True, 'f1'), (False, 'r3'), (False, 'r4')]
    """

    retain: Iterable[Any]
    forget: Iterable[Any]

    def __len__(self) -> int:
        return len(self.retain) + len(self.forget)  # type: ignore[arg-type]  # as above

    def __iter__(self) -> Iterator[tuple[bool, Any]]:
        """Yield whether a batch is one to forget, and the batch."""
        sets = {False: self.retain, True: self.forget}
        sizes = {flag: length(batches) for flag, batches in sets.items()}
        known = None not in sizes.values()
        step = {flag: 1 / max(1, sizes[flag] or 1) if known else 1.0 for flag in sets}
        left = {flag: iter(batches) for flag, batches in sets.items()}
        # What a set has behind it, in the middle of its next batch, as a share of the whole set.
        due = {flag: step[flag] / 2 for flag in sets}
        while left:
            flag = min(left, key=lambda one: (due[one], one))
            try:
                batch = next(left[flag])
            except StopIteration:
                del left[flag]
                continue
            due[flag] += step[flag]
            yield flag, batch


def reshuffled(batches: Iterable[Any], *, seed: int) -> Iterable[Any]:
    """Read the data of a loader in another order: training in the order of the data set can go badly wrong.

    Args:
        batches: A data loader that reads a data set from its first sample to its last, or a mixture of such. Anything
            else, a loader with a sampler too, is handed back as it is.
        seed: Which order.

    Returns:
        Batches of the same size.

    Example:
        >>> batches = DataLoader(torch.arange(4), batch_size=2)
        >>> sorted(int(i) for batch in reshuffled(batches, seed=0) for i in batch)
        [0, 1, 2, 3]
    """
    if isinstance(batches, Paired | Interleaved):
        parts = {name: reshuffled(getattr(batches, name), seed=seed) for name in ("retain", "forget")}
        return attrs.evolve(batches, **parts)
    if not isinstance(batches, DataLoader) or isinstance(batches.dataset, IterableDataset):
        return batches
    if batches.batch_size is None or not isinstance(batches.sampler, SequentialSampler):
        return batches
    return DataLoader(
        batches.dataset,
        batch_size=batches.batch_size,
        shuffle=True,
        num_workers=batches.num_workers,
        collate_fn=batches.collate_fn,
        pin_memory=batches.pin_memory,
        drop_last=batches.drop_last,
        worker_init_fn=batches.worker_init_fn,
        generator=torch.Generator().manual_seed(seed),
    )


def _again(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        count = 0
        for batch in batches:
            yield batch
            count += 1
        if not count:
            raise ConfigurationError(
                "expected at least one batch of the forget set, saw none: hand over a data loader or a list, not an "
                "iterator that is used up"
            )
