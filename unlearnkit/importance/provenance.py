"""Where an importance comes from: role, fingerprint, order of the data, relative error."""

import enum
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from typing import Any, final

import attrs
import torch

from unlearnkit.data.batches import batch_size, digest
from unlearnkit.distributed.collectives import all_gather, batch_indices, in_order, raise_on_all_ranks
from unlearnkit.utils.errors import ConfigurationError, MismatchError, nearest
from unlearnkit.utils.options import by_fields, read_only


class Role(enum.Enum):
    """The set that an importance was measured on: D_f, D_r, D, or unknown."""

    FORGET = "forget"
    RETAIN = "retain"
    FULL = "full"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> "Role":
        known = [role.value for role in cls]
        raise ConfigurationError(f"expected the role of a data set, saw {value!r}{nearest(str(value), known)}")


@final
@attrs.frozen(kw_only=True)
class Fingerprint:
    """The kind of an importance: two may be added, subtracted or compared only when these are equal.

    Attributes:
        estimator: Name of the estimator, as ``"diagonal-fisher"``.
        unit: ``"sample"`` when each term belongs to one sample, ``"batch"`` when to one batch.
        labels: Where the labels come from: ``"data"``, ``"model"`` or ``"none"``.
        objective: The objective and its options.
        precision: Dtypes of the gradients and of the totals.
        options: The estimator's options that change the result.
        model: Digest of the model's weights and buffers; "" when not bound to a model.
        sample: What was drawn of a set whose importance was scaled up from a sample (`sampled_reference`); "" for all.
    """

    estimator: str = ""
    unit: str = ""
    labels: str = ""
    objective: str = ""
    precision: str = ""
    options: str = ""
    model: str = ""
    sample: str = ""

    def differences(self, other: "Fingerprint") -> list[str]:
        """List the fields that differ, with both values."""
        mine, theirs = attrs.asdict(self), attrs.asdict(other)
        return [f"{key}: {mine[key]!r} against {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


def _freeze(sizes: Mapping[Any, int]) -> Mapping[int, int]:
    return read_only({int(size): int(times) for size, times in sorted(sizes.items(), key=lambda kv: int(kv[0]))})


@final
@attrs.frozen(kw_only=True)
class DataOrder:
    """The batch sizes of a pass, and a hash of the data in their order.

    Attributes:
        sizes: Batch size to how many batches of that size.
        order: Hexadecimal hash of the batches' sampled contents in the order of the pass; "" when not known.

    Examples:
        >>> import torch
        >>> DataOrder().add(torch.zeros(4, 2)).add(torch.zeros(4, 2)).add(torch.zeros(3, 2)).describe()
        '2 × 4, 1 × 3'
    """

    sizes: Mapping[int, int] = attrs.field(factory=dict, converter=_freeze)
    order: str = ""

    __reduce__ = by_fields

    def add(self, batch: Any) -> "DataOrder":
        """Append one batch; pass it before it is moved to the device, because hashing waits for the device."""
        return self.then(DataOrder(sizes={batch_size(batch): 1}, order=digest(batch).hex()))

    def then(self, other: "DataOrder") -> "DataOrder":
        """Append another trail."""
        if not self.sizes or not other.sizes:
            return self if self.sizes else other
        order = hashlib.blake2b((self.order + other.order).encode(), digest_size=16).hexdigest()
        return DataOrder(sizes=Counter(self.sizes) + Counter(other.sizes), order=order)

    def differences(self, other: "DataOrder") -> list[str]:
        """Return a sentence when the batch sizes differ; a single smaller batch is no difference."""
        if not self.sizes or not other.sizes or max(self.sizes) == max(other.sizes):
            return []
        small = self if max(self.sizes) < max(other.sizes) else other
        if sum(small.sizes.values()) == 1:
            return []
        sizes = f"{max(self.sizes)} against {max(other.sizes)}"
        return [f"batch size: {sizes} (squares of batch means depend on it: estimate both with one batch size)"]

    def describe(self) -> str:
        """Format the sizes, the largest first: ``"97 × 512, 1 × 336"``."""
        return ", ".join(f"{times} × {size}" for size, times in sorted(self.sizes.items(), reverse=True))


def check_same_on_every_rank(batches: Iterable[Any], model_digest: str) -> Iterable[Any]:
    """Refuse processes with other data or another model, as far as it can be known before the first batch.

    Returns the batches, in the order that was compared: a loader that shuffles draws it here.
    """
    with raise_on_all_ranks():
        batches, order = _known_order(batches)
    seen = all_gather((model_digest, order))
    for what, place in (("model", 0), ("batches in the same order (give a shuffling loader one seed)", 1)):
        other = [f"rank {rank}: {one[place]}" for rank, one in enumerate(seen) if one[place] != seen[0][place]]
        if other:
            raise MismatchError(f"expected the {what} {seen[0][place]} of rank 0 on every rank, saw {', '.join(other)}")
    return batches


def _known_order(batches: Iterable[Any]) -> tuple[Iterable[Any], str]:
    drawn, data = batch_indices(batches), getattr(batches, "dataset", None)
    if drawn is not None and data is not None:
        indices = [list(batch) for batch in drawn]
        ends = [data[batch[0]] for batch in (*indices[:1], *indices[-1:])]
        order = hashlib.blake2b(repr([list(map(int, batch)) for batch in indices]).encode(), digest_size=8).hexdigest()
        return in_order(batches, indices), f"{order}, samples {' '.join(digest(one).hex()[:8] for one in ends)}"
    if isinstance(batches, Sequence):
        trail = DataOrder()
        for batch in batches:
            trail = trail.add(batch)
        return batches, trail.order
    rest = iter(batches)
    first = list(islice(rest, 1))
    return chain(first, rest), " ".join(digest(batch).hex() for batch in first)


def error_of_sum(parts: Iterable[tuple[float | None, int]]) -> float | None:
    """Bound the relative error of a sum of totals, however their errors depend on each other."""
    # The standard deviation of a sum is at most the sum of the standard deviations: the mean of the relative errors,
    # weighted by samples, or the largest one where a number of samples is unknown.
    given = list(parts)
    errors, samples = [error for error, _ in given if error is not None], [n for _, n in given]
    if len(errors) < len(given):
        return None
    if not all(samples):
        return max(errors, default=0.0)
    return sum(e * n for e, n in zip(errors, samples, strict=True)) / sum(samples)


def error_of_difference(whole: float | None, part: float | None) -> float | None:
    """Bound the relative error of a difference of totals."""
    return 0.0 if whole == part == 0 else None


def error_text(error: float | None) -> str:
    """Format a relative error; nothing where there is none."""
    if error == 0:
        return ""
    return "not known" if error is None else f"up to {100 * error:.2g} %"


def coarsest_eps(precision: str) -> float:
    """Return the machine epsilon of the coarsest dtype that a text names."""
    name = next(name for name in ("bfloat16", "float16", "float32", "float64") if name in precision)
    return torch.finfo(getattr(torch, name)).eps
