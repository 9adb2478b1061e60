"""Batches in an order that depends on the seed and on nothing else."""

from collections.abc import Iterator, Sized
from typing import Any, final

import attrs
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from typing_extensions import override

from unlearnkit.utils.errors import ConfigurationError


@final
@attrs.frozen(kw_only=True, eq=False)
class FixedShuffle(Sampler[int]):
    """One permutation of n samples, the same in every pass and with any number of workers.

    Example:
        >>> order = FixedShuffle(samples=4, seed=0)
        >>> list(order) == list(order), sorted(order)
        (True, [0, 1, 2, 3])
    """

    samples: int
    seed: int

    def __len__(self) -> int:
        return self.samples

    @override
    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        yield from torch.randperm(self.samples, generator=generator).tolist()


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> DataLoader[Any]:
    """Make a data loader that can be iterated again and again and always yields the same batches.

    An estimator can compare two passes, and a run can be repeated. The global random state is neither read nor
    changed. For training, hand the data set itself to `unlearnkit.models.train`, which shuffles anew each epoch.

    Args:
        dataset: Anything with a length and items.
        batch_size: Samples per batch, ≥ 1; the last batch may be smaller.
        shuffle: Whether to use a fixed permutation instead of the data set's order.
        seed: Which permutation, ≥ 0; needed when ``shuffle`` is on.
        workers: Processes that load images; 0 loads them in this one. The order does not depend on it.
        device: Where the batches go next: memory is pinned only when that is a CUDA device.

    Returns:
        A data loader.

    Raises:
        ConfigurationError: A number is out of range, or ``shuffle`` is on without a seed.

    Example:
        >>> batches = loader(torch.arange(5), batch_size=2)
        >>> [batch.tolist() for batch in batches]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1 or workers < 0:
        raise ConfigurationError(
            f"loader: expected batch_size ≥ 1 and workers ≥ 0, saw batch_size={batch_size} and workers={workers}"
        )
    if shuffle and (seed is None or seed < 0):
        raise ConfigurationError(f"loader: expected a seed ≥ 0 when shuffle is on, saw {seed}: say for example seed=0")
    if not isinstance(dataset, Sized) or not len(dataset):
        raise ConfigurationError(
            f"loader: expected a data set with a length of at least 1, saw {type(dataset).__name__} without"
        )
    order = FixedShuffle(samples=len(dataset), seed=seed or 0) if shuffle else SequentialSampler(dataset)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        # A generator of its own, because a loader without one draws the seeds of its workers from the global one.
        generator=torch.Generator().manual_seed(seed or 0),
        pin_memory=device is not None and torch.device(device).type == "cuda",
    )
