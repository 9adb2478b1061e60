"""Data loaders in a fixed order, and loaders of two sets paired or interleaved."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from itertools import chain, pairwise
from typing import Any, TypeGuard, final

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from unlearnkit.data.batches import batch_size, joined, lost_samples, take, tensors
from unlearnkit.utils.errors import ConfigurationError, MismatchError
from unlearnkit.utils.progress import length
from unlearnkit.utils.rng import private_rng


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> DataLoader[Any]:
    """Make a data loader that yields the same batches in every pass, whatever the global random state is.

    ``shuffle`` is one fixed permutation, drawn from ``seed`` ≥ 0. ``workers`` processes load images; 0 loads them in
    this one. Memory is pinned when the ``device`` where the batches are used is a CUDA device. A number that is out of
    range, or ``shuffle`` without a seed, is a `ConfigurationError`. For training, pass the data set itself to
    `unlearnkit.models.train`, which shuffles it in each epoch.

    Examples:
        >>> batches = loader(torch.arange(5), batch_size=2)
        >>> [batch.tolist() for batch in batches]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1 or workers < 0:
        raise ConfigurationError(f"loader: expected batch_size ≥ 1 and workers ≥ 0, saw {batch_size} and {workers}")
    if shuffle and (seed is None or seed < 0):
        raise ConfigurationError(f"loader: expected a seed ≥ 0 when shuffle is on, saw {seed}: say for example seed=0")
    if not isinstance(dataset, Sized) or not len(dataset):
        raise ConfigurationError(f"loader: expected a length of at least 1, saw {type(dataset).__name__} without")
    generator = torch.Generator().manual_seed(seed or 0)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=torch.randperm(len(dataset), generator=generator).tolist() if shuffle else None,
        num_workers=workers,
        # Without a generator of its own, a loader draws the seeds of its workers from the global one.
        generator=generator,
        pin_memory=device is not None and torch.device(device).type == "cuda",
    )


def draw_samples(batches: Iterable[Any], *, count: int, seed: int) -> tuple[Iterable[Any], int]:
    """Draw samples without replacement; return them in batches, in their order, and how many there are to draw from.

    Of a data loader only the drawn samples are read; of anything else, every batch, twice.
    """
    if _reads_samples(batches) and isinstance(batches.dataset, Sized) and not lost_samples(batches):
        own = _indices(batches)
        rows = own[drawn_rows(len(own), count, seed=seed)]
        drawn = DataLoader(
            Subset(batches.dataset, rows.tolist()),
            batch_size=batches.batch_size or 1,
            collate_fn=batches.collate_fn,
            num_workers=batches.num_workers,
            worker_init_fn=batches.worker_init_fn,
            generator=torch.Generator().manual_seed(seed),
            pin_memory=batches.pin_memory,
        )
        return drawn, len(own)
    sizes = [batch_size(batch) for batch in batches]
    rows, ends = drawn_rows(sum(sizes), count, seed=seed), np.cumsum([0, *sizes])
    parts = [torch.from_numpy(rows[(a <= rows) & (rows < b)] - a) for a, b in pairwise(ends.tolist())]
    return [take(batch, part) for batch, part in zip(batches, parts, strict=True) if len(part)], sum(sizes)


def _indices(batches: "DataLoader[Any]") -> np.ndarray:
    """Return the indices of the samples that a loader reads, in order; its sampler may take some of the data set."""
    assert batches.batch_sampler is not None, "a loader of samples"
    with private_rng(seed=0):  # a sampler may draw from the global generator
        return np.sort(np.fromiter(chain.from_iterable(batches.batch_sampler), dtype=np.int64))


def drawn_rows(total: int, count: int, *, seed: int) -> np.ndarray:
    """Draw ``count`` of ``total`` rows without replacement, in order; all where there are no more."""
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


@final
@attrs.frozen(kw_only=True, eq=False)
class Paired:
    """Batches of the retain set, each with one of the forget set, which repeats.

    Examples:
        >>> list(Paired(retain=["r1", "r2", "r3"], forget=["f1", "f2"]))
        [('r1', 'f1'), ('r2', 'f2'), ('r3', 'f1')]
    """

    retain: Iterable[Any]
    forget: Iterable[Any]

    def __len__(self) -> int:
        return len(self.retain)  # type: ignore[arg-type]  # a TypeError where there is no length

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return zip(self.retain, _repeat(self.forget), strict=False)


@final
@attrs.frozen(kw_only=True, eq=False)
class Interleaved:
    """Every batch of two sets once, evenly mixed where their lengths are known, else alternating.

    Examples:
        >>> list(Interleaved(retain=["r1", "r2", "r3", "r4"], forget=["f1"]))
        [(False, 'r1'), (False, 'r2'), (True, 'f1'), (False, 'r3'), (False, 'r4')]
    """

    retain: Iterable[Any]
    forget: Iterable[Any]

    def __len__(self) -> int:
        return len(self.retain) + len(self.forget)  # type: ignore[arg-type]  # as above

    def __iter__(self) -> Iterator[tuple[bool, Any]]:
        """Yield ``(True, batch)`` for the forget set and ``(False, batch)`` for the retain set."""
        sets = {False: self.retain, True: self.forget}
        sizes = {flag: length(batches) for flag, batches in sets.items()}
        known = None not in sizes.values()
        step = {flag: 1 / (size or 1) if known else 1.0 for flag, size in sizes.items()}
        left = {flag: iter(batches) for flag, batches in sets.items()}
        # The share of each set that is done in the middle of its next batch.
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


def reshuffled(batches: Iterable[Any], *, seed: int, labels: Callable[[Any], Tensor] | None = None) -> Iterable[Any]:
    """Shuffle the data of a sequential loader, or of a mixture of such: training in data set order can go badly wrong.

    So is a list of batches whose ``labels`` change half as often as in a random order, or less. Anything else, a loader
    with a sampler or an ``__iter__`` of its own too, is returned unchanged.

    Examples:
        >>> batches = DataLoader(torch.arange(4), batch_size=2)
        >>> sorted(int(i) for batch in reshuffled(batches, seed=0) for i in batch)
        [0, 1, 2, 3]
    """
    if isinstance(batches, Paired | Interleaved):
        parts: dict[str, Any] = {
            name: reshuffled(getattr(batches, name), seed=seed, labels=labels) for name in ("retain", "forget")
        }
        return attrs.evolve(batches, **parts)
    if isinstance(batches, Sequence) and labels is not None and _in_class_order(batches, labels):
        return _Shuffled(batches=batches, seed=seed)
    if not _reads_samples(batches) or batches.batch_size is None or not isinstance(batches.sampler, SequentialSampler):
        return batches
    if not isinstance(batches.dataset, Sized) or len(batches.sampler) != len(batches.dataset):
        return batches  # it reads some of the data set
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


@final
@attrs.frozen(kw_only=True, eq=False)
class WithoutSingles:
    """The batches of each pass without those of one sample that follow a larger one, which are counted."""

    batches: Iterable[Any]
    left_out: list[Any] = attrs.field(factory=list)

    def __len__(self) -> int:
        """Return how many batches are left, where that can be known; else of all."""
        if isinstance(self.batches, list | tuple):
            return sum(1 for _ in self._pass([]))
        whole, given = len(self.batches), self.batches  # type: ignore[arg-type]  # as above
        if not isinstance(given, DataLoader) or isinstance(given.dataset, IterableDataset) or given.batch_size is None:
            return whole
        size, samples = given.batch_size, len(given.sampler)  # type: ignore[arg-type]
        return whole - (not given.drop_last and samples > size > 1 and samples % size == 1)

    def __iter__(self) -> Iterator[Any]:
        return self._pass(self.left_out)

    def _pass(self, left_out: list[Any]) -> Iterator[Any]:
        larger = False
        for batch in self.batches:
            sizes = {tensor.shape[0] for tensor in tensors(batch) if tensor.dim()}
            if larger and sizes == {1}:
                left_out.append(1)
                continue
            larger |= sizes != {1}
            yield batch

    @classmethod
    def of(cls, batches: Iterable[Any], left_out: list[Any]) -> Iterable[Any]:
        """Leave them out of a loader, or of both parts of a mixture."""
        if isinstance(batches, Paired | Interleaved):
            parts: dict[str, Any] = {name: cls.of(getattr(batches, name), left_out) for name in ("retain", "forget")}
            return attrs.evolve(batches, **parts)
        return cls(batches=batches, left_out=left_out)


def _reads_samples(batches: Any) -> TypeGuard["DataLoader[Any]"]:
    """Say whether a loader can be rebuilt from its data set, which it reads by index and sample by sample."""
    if not isinstance(batches, DataLoader) or type(batches).__iter__ is not DataLoader.__iter__:
        return False  # an __iter__ of its own may change the batches
    return batches.batch_sampler is not None and not isinstance(batches.dataset, IterableDataset)


def _in_class_order(batches: Sequence[Any], labels: Callable[[Any], Tensor]) -> bool:
    """Say whether the label changes from sample to sample half as often as in a random order, or less."""
    if len(batches) < 2:
        return False
    try:
        each = [labels(batch).cpu() for batch in batches]
    except ConfigurationError:  # no such field: the loss may not need it
        return False
    if any(one.is_floating_point() or one.dim() != 1 for one in each):
        return False
    found = torch.cat(each)
    counts = Counter(found.tolist()).values()
    expected = len(found) - sum(count**2 for count in counts) / len(found)
    return len(counts) > 1 and int((found[1:] != found[:-1]).sum()) <= expected / 2


@final
@attrs.frozen(kw_only=True, eq=False)
class _Shuffled:
    """The samples of some batches in another order, in batches of the same sizes."""

    batches: Sequence[Any]
    seed: int

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        sizes = [batch_size(batch) for batch in self.batches]
        try:
            everything = joined(self.batches)
        except MismatchError as error:
            raise MismatchError(
                f"{error}: the samples are in the order of their classes; shuffle them before you make batches of them"
            ) from error
        order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(self.seed))
        yield from (take(everything, rows) for rows in torch.split(order, sizes))


def _repeat(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            yield batch
            empty = False
        if empty:
            raise ConfigurationError(
                "expected at least one batch of the forget set, saw none: pass a list, not an iterator that is used up"
            )
