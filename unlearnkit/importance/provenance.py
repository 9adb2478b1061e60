"""What an importance is: of which kind, of which model, on which data, in which order."""

import enum
import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, final

import attrs

from unlearnkit.data.batches import batch_size, digest
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.frozen import by_fields, read_only
from unlearnkit.utils.suggest import nearest


class Role(enum.Enum):
    """Which set of data an importance was measured on: D_f, D_r, D, or not known."""

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
    """

    estimator: str = ""
    unit: str = ""
    labels: str = ""
    objective: str = ""
    precision: str = ""
    options: str = ""
    model: str = ""

    def differences(self, other: "Fingerprint") -> list[str]:
        """Say in which fields two fingerprints differ.

        Args:
            other: The other fingerprint.

        Returns:
            One sentence per field.

        Example:
            >>> Fingerprint(unit="sample").differences(Fingerprint(unit="batch"))
            ["unit: 'sample' against 'batch'"]
        """
        mine, theirs = attrs.asdict(self), attrs.asdict(other)
        return [f"{key}: {mine[key]!r} against {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


def _freeze(sizes: Mapping[Any, int]) -> Mapping[int, int]:
    return read_only({int(size): int(times) for size, times in sorted(sizes.items(), key=lambda kv: int(kv[0]))})


@final
@attrs.frozen(kw_only=True)
class DataOrder:
    """Which batch sizes were seen, how often, and a hash of the data in their order.

    Attributes:
        sizes: Batch size to how many batches of that size.
        order: Hexadecimal hash of the batches' sampled contents in the order of the pass; "" when not known.

    Example:
        >>> import torch
        >>> DataOrder().add(torch.zeros(4, 2)).add(torch.zeros(4, 2)).add(torch.zeros(3, 2)).describe()
        '2 × 4, 1 × 3'
    """

    sizes: Mapping[int, int] = attrs.field(factory=dict, converter=_freeze)
    order: str = ""

    __reduce__ = by_fields

    def add(self, batch: Any) -> "DataOrder":
        """Append one batch.

        Args:
            batch: Before it is moved to the device, so that hashing does not wait for the device.

        Returns:
            A longer trail.
        """
        return self.then(DataOrder(sizes={batch_size(batch): 1}, order=digest(batch).hex()))

    def then(self, other: "DataOrder") -> "DataOrder":
        """Append another trail.

        Args:
            other: What came after this one.

        Returns:
            Both, one after the other.
        """
        if not self.sizes or not other.sizes:
            return self if self.sizes else other
        order = hashlib.blake2b((self.order + other.order).encode(), digest_size=16).hexdigest()
        return DataOrder(sizes=Counter(self.sizes) + Counter(other.sizes), order=order)

    def differences(self, other: "DataOrder") -> list[str]:
        """Say whether two trails were cut into batches of different size; a single smaller batch is no difference.

        Args:
            other: The other trail.

        Returns:
            One sentence or none.
        """
        if not self.sizes or not other.sizes or max(self.sizes) == max(other.sizes):
            return []
        small = self if max(self.sizes) < max(other.sizes) else other
        if sum(small.sizes.values()) == 1:
            return []
        sizes = f"{max(self.sizes)} against {max(other.sizes)}"
        return [f"batch size: {sizes} (squares of batch means depend on it: estimate both with one batch size)"]

    def describe(self) -> str:
        """Write the sizes as people do.

        Returns:
            For example ``"97 × 512, 1 × 336"``, the largest first.
        """
        return ", ".join(f"{times} × {size}" for size, times in sorted(self.sizes.items(), reverse=True))
