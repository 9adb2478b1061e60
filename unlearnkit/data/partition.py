"""The two parts that a data set falls into: the forget set D_f and the retain set D_r."""

import hashlib
from collections.abc import Mapping
from typing import Any, final

import attrs
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from unlearnkit.utils.errors import ConfigurationError, raise_all

Indices = NDArray[np.int64]
Labels = Tensor | NDArray[Any]


def _freeze_indices(values: Any) -> Indices:
    return np.array(values, dtype=np.int64).reshape(-1)  # writable: torch warns of indices that are not


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Split:
    """A data set of n samples cut into a forget set D_f and a retain set D_r.

    Attributes:
        forget: Indices of D_f, sorted int64, shape (|D_f|,).
        retain: Indices of D_r, sorted int64, shape (|D_r|,). Every index 0 … n−1 is in one of
            the two.
        scenario: ``"full-class"``, ``"sub-class"`` or ``"random"``.

    Example:
        >>> Split(forget=[1, 3], retain=[0, 2], scenario="random")
        Split(random: forget 2 of 4)
    """

    forget: Indices = attrs.field(converter=_freeze_indices)
    retain: Indices = attrs.field(converter=_freeze_indices)
    scenario: str

    def __attrs_post_init__(self) -> None:
        both = np.sort(np.concatenate([self.forget, self.retain]))
        problems = [
            f"{name}: expected indices in rising order without repeats"
            for name, part in (("forget", self.forget), ("retain", self.retain))
            if (np.diff(part) <= 0).any()
        ]
        if not np.array_equal(both, np.arange(len(both))):
            problems.append(f"expected forget and retain to hold each index 0 … {len(both) - 1} once")
        raise_all(problems, where="Split", error=ConfigurationError)

    @override
    def __repr__(self) -> str:
        return f"Split({self.scenario}: forget {len(self.forget)} of {self.samples})"

    @property
    def samples(self) -> int:
        """Return n, the number of samples of the data set."""
        return len(self.forget) + len(self.retain)

    def digest(self) -> str:
        """Hash which samples are forgotten, for a run manifest.

        Returns:
            32 hexadecimal digits. Equal digests mean the same forget indices of as many samples.

        Example:
            >>> one = Split(forget=[0], retain=[1], scenario="random")
            >>> other = Split(forget=[1], retain=[0], scenario="random")
            >>> one.digest() == other.digest()
            False
        """
        state = hashlib.blake2b(f"{self.samples}|".encode(), digest_size=16)
        state.update(self.forget.astype("<i8").tobytes())
        return state.hexdigest()


def split_of(mask: NDArray[np.bool_], *, scenario: str) -> Split:
    """Make a split from a mask.

    Example:
        >>> split_of(np.array([False, True, False]), scenario="random").retain
        array([0, 2])
    """
    return Split(forget=np.flatnonzero(mask), retain=np.flatnonzero(~mask), scenario=scenario)


def label_arrays(labels: Mapping[str, Labels]) -> dict[str, Indices]:
    """Check label arrays and turn them into numpy.

    Example:
        >>> label_arrays({"label": np.array([0, 1], dtype=np.uint8)})
        {'label': array([0, 1])}
    """
    arrays = {
        kind: values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        for kind, values in labels.items()
    }
    problems = [
        f"{kind}: expected whole numbers of shape (n,), saw {array.dtype} of shape {array.shape}"
        for kind, array in arrays.items()
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer)
    ]
    lengths = {kind: array.shape[0] if array.ndim else 0 for kind, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        problems.append(f"expected one label of each kind for each of n ≥ 1 samples, saw {lengths}")
    raise_all(problems, where="labels", error=ConfigurationError)
    return {kind: array.astype(np.int64) for kind, array in arrays.items()}
