"""Forget and retain sets: what to forget (classes, sub-classes, indices), splits, and validation parts of them."""

import abc
import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import attrs
import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor
from typing_extensions import override

from unlearnkit.utils.errors import ConfigurationError, StoreError, raise_all
from unlearnkit.utils.files import read_text

Indices = NDArray[np.int64]
Labels = Tensor | NDArray[Any]
Names = Mapping[str, Sequence[str]]
_NO_NAMES: Names = {}
_WHOLE = re.compile(r"-?[0-9]{1,18}")


def _freeze_indices(values: Any) -> Indices:
    return np.array(values, dtype=np.int64).reshape(-1)  # writable: torch warns of indices that are not


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class Split:
    """A data set of n samples, split into a forget set D_f and a retain set D_r.

    Attributes:
        forget: Indices of D_f, sorted int64, shape (|D_f|,).
        retain: Indices of D_r, sorted int64, shape (|D_r|,). Every index 0 … n−1 is in one of the two.
        scenario: ``"full-class"``, ``"sub-class"``, ``"random"`` or ``"corrupted"``.

    Examples:
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
        """The number of samples of the data set, n."""
        return len(self.forget) + len(self.retain)

    def digest(self) -> str:
        """Hash the number of samples and the forget indices, 32 hexadecimal digits."""
        state = hashlib.blake2b(f"{self.samples}|".encode(), digest_size=16)
        state.update(self.forget.astype("<i8").tobytes())
        return state.hexdigest()


def split_of(mask: NDArray[np.bool_], *, scenario: str) -> Split:
    """Make a split from a mask."""
    return Split(forget=np.flatnonzero(mask), retain=np.flatnonzero(~mask), scenario=scenario)


def label_arrays(labels: Mapping[str, Labels]) -> dict[str, Indices]:
    """Check labels and convert them to numpy."""
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


class ForgetSpec(abc.ABC):
    """A description of D_f that can be applied to any labelled data set.

    To write another rule, subclass it and implement `select`; `split` checks what it returns.

    Attributes:
        scenario: Its name in the literature: ``"full-class"``, ``"sub-class"``, ``"random"`` or ``"corrupted"``.
        carries_over: Whether the rule applies to test samples too. A list of training indices does not.
    """

    scenario: ClassVar[str]
    carries_over: ClassVar[bool]

    @abc.abstractmethod
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        """Return which samples to forget: shape (n,), bool, neither all False nor all True.

        Args:
            labels: Label kind to int64 labels, shape (n,).
            target: The label kind that the model is trained on.
            class_names: Label kind to the names of its classes, where they are known.
        """

    @final
    def split(
        self, labels: Mapping[str, Labels], *, target: str | None = None, class_names: Names = _NO_NAMES
    ) -> Split:
        """Split a training set; see `select` for the arguments. The target is by default the last label kind.

        An empty part, or a class or an index that does not exist, is a `ConfigurationError`.
        """
        split = self._cut(labels, target, class_names)
        if not len(split.forget):
            raise ConfigurationError(f"{self}: expected at least one sample to forget, saw none among {split.samples}")
        if not len(split.retain):
            raise ConfigurationError(
                f"{self}: expected at least one sample to retain, saw all {split.samples} forgotten: train a new model"
            )
        return split

    @final
    def split_unseen(
        self, labels: Mapping[str, Labels], *, target: str | None = None, class_names: Names = _NO_NAMES
    ) -> Split:
        """Split a test set by the same rule; a part may be empty, and without `carries_over` the forget set is."""
        if self.carries_over:
            return self._cut(labels, target, class_names)
        samples = len(next(iter(label_arrays(labels).values())))
        return split_of(np.zeros(samples, dtype=bool), scenario=self.scenario)

    def _cut(self, labels: Mapping[str, Labels], target: str | None, class_names: Names) -> Split:
        arrays = label_arrays(labels)
        kind = next(reversed(arrays)) if target is None else target
        if kind not in arrays:
            raise ConfigurationError(f"target: expected one of the label kinds {list(arrays)}, saw {kind!r}")
        mask = np.asarray(self.select(arrays, target=kind, class_names=class_names))
        expected = arrays[kind].shape
        if mask.dtype != np.bool_ or mask.shape != expected:
            raise ConfigurationError(
                f"{type(self).__name__}.select must return a bool array of shape {expected}, saw "
                f"{mask.dtype} of shape {mask.shape}"
            )
        return split_of(mask, scenario=self.scenario)


def _as_classes(value: Any) -> tuple[int | str, ...]:
    items = (value,) if isinstance(value, int | str | np.integer) else tuple(value)
    bad = [item for item in items if isinstance(item, bool) or not isinstance(item, int | str | np.integer)]
    if bad or not items:
        raise ConfigurationError(f"expected class numbers or names, at least one, saw {value!r}")
    return tuple(item if isinstance(item, str) else int(item) for item in items)


@final
@attrs.frozen(kw_only=True)
class ByClass(ForgetSpec):
    """Forget all samples of some classes of the training target: full-class forgetting.

    Attributes:
        classes: Class numbers, or names where the data set has them; a single one need not be in a list. A number that
            is the name of another class is refused: write the name as text.

    Examples:
        >>> names = {"label": ["dog", "cat"]}
        >>> ByClass(classes="cat").split({"label": np.array([0, 1, 0])}, class_names=names)
        Split(full-class: forget 1 of 3)
    """

    scenario: ClassVar[str] = "full-class"
    carries_over: ClassVar[bool] = True

    classes: tuple[int | str, ...] = attrs.field(converter=_as_classes)

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        wanted = _numbers(self.classes, labels[target], names=class_names.get(target, ()), what=f"ByClass {target}")
        return np.isin(labels[target], wanted)


@final
@attrs.frozen(kw_only=True)
class BySubclass(ForgetSpec):
    """Forget some fine classes of a model that is trained on coarse ones: sub-class forgetting.

    Attributes:
        fine: Fine class numbers or names; a single one need not be in a list. CIFAR-100's rocket is 69.
        kind: The label kind of these classes.

    Examples:
        >>> labels = {"fine": np.array([0, 1, 2, 3]), "coarse": np.array([0, 0, 1, 1])}
        >>> BySubclass(fine=2).split(labels, target="coarse").forget
        array([2])
    """

    scenario: ClassVar[str] = "sub-class"
    carries_over: ClassVar[bool] = True

    fine: tuple[int | str, ...] = attrs.field(converter=_as_classes)
    kind: str = "fine"

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        if self.kind not in labels or self.kind == target:
            raise ConfigurationError(
                f"BySubclass: expected labels of kind {self.kind!r} beside the target {target!r}, "
                f"saw {list(labels)}: use ByClass, or a data set with fine labels trained on the coarse ones"
            )
        wanted = _numbers(
            self.fine, labels[self.kind], names=class_names.get(self.kind, ()), what=f"BySubclass {self.kind}"
        )
        mask = np.isin(labels[self.kind], wanted)
        pairs = np.unique(np.stack([labels[self.kind][mask], labels[target][mask]]), axis=1)
        found, times = np.unique(pairs[0], return_counts=True)
        raise_all(
            (
                f"{self.kind} class {number}: expected to lie in one {target} class, saw {count}"
                for number, count in zip(found[times > 1], times[times > 1], strict=True)
            ),
            where="BySubclass",
            error=ConfigurationError,
        )
        return mask


def _as_indices(value: Any) -> tuple[int, ...]:
    array = np.asarray(value)
    if array.ndim == 1 and array.size == 0:
        raise ConfigurationError("ByIndex.indices: expected at least one index, saw none")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or array.max() > np.iinfo(np.int64).max:
        raise ConfigurationError(
            f"ByIndex.indices: expected whole numbers in one dimension, saw {array.dtype} of shape {array.shape}"
        )
    return tuple(array.tolist())


@final
@attrs.frozen(kw_only=True, repr=False)
class ByIndex(ForgetSpec):
    """Forget some samples of the training set by their indices: the random scenario.

    Attributes:
        indices: Indices into the training set, without repeats, in any order.

    Examples:
        >>> ByIndex(indices=[3, 0]).split({"label": np.array([0, 1, 2, 1])}).forget
        array([0, 3])
    """

    scenario: ClassVar[str] = "random"
    carries_over: ClassVar[bool] = False

    indices: tuple[int, ...] = attrs.field(converter=_as_indices)

    @override
    def __repr__(self) -> str:
        return f"ByIndex({len(self.indices)} indices)"

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read one index a line from a UTF-8 text file; empty lines and text after ``#`` are skipped."""
        try:
            lines = read_text(path).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read indices from {path}: {error}") from error
        numbered = [(n, line.split("#", 1)[0].strip()) for n, line in enumerate(lines, start=1)]
        kept = [(n, text) for n, text in numbered if text]
        bad = [(n, text) for n, text in kept if not _WHOLE.fullmatch(text)]
        problems = [f"line {n}: expected a whole number, saw {text[:80]!r}: at most 18 digits" for n, text in bad[:5]]
        problems += [f"and {len(bad) - 5} more lines"] if len(bad) > 5 else []
        raise_all(problems, where=str(path), error=StoreError)
        return cls(indices=np.array([int(text) for _, text in kept], dtype=np.int64))

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        samples = len(labels[target])
        wanted = np.array(self.indices, dtype=np.int64)
        outside = wanted[(wanted < 0) | (wanted >= samples)]
        values, times = np.unique(wanted, return_counts=True)
        problems = []
        if outside.size:
            problems.append(f"expected indices between 0 and {samples - 1}, saw {_some(outside)}")
        if (times > 1).any():
            problems.append(f"expected each index once, saw {_some(values[times > 1])} more than once")
        raise_all(problems, where="ByIndex", error=ConfigurationError)
        mask = np.zeros(samples, dtype=bool)
        mask[wanted] = True
        return mask


def _some(values: Iterable[Any], limit: int = 5) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def _numbers(wanted: Iterable[int | str], present: Indices, *, names: Sequence[str], what: str) -> list[int]:
    known = len(names) if names else int(present.max()) + 1
    shown = f" ({names[0]} … {names[-1]})" if names else ""
    problems, numbers = [], []
    for item in wanted:
        number = names.index(item) if item in names else item
        # Folders are sorted as text: of "1" … "10", "10" is class 1.
        named = [] if isinstance(item, str) else [i for i, n in enumerate(names) if n.isdecimal() and int(n) == item]
        if named not in ([], [item]):
            problems.append(f"{item} is the name of another class: write {names[named[0]]!r}, in quotes, for that one")
        elif isinstance(number, str):
            near = difflib.get_close_matches(number, names, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": give a number between 0 and {known - 1}{shown}"
            problems.append(f"no class is named {number!r}{hint}")
        elif not 0 <= number < known:
            problems.append(f"expected a class between 0 and {known - 1}{shown}, saw {number}")
        else:
            numbers.append(number)
    raise_all(problems, where=what, error=ConfigurationError)
    return numbers


@final
@attrs.frozen(kw_only=True, eq=False)
class ValidationSplit:
    """A training set in four parts: importances are estimated on two, edits are judged on the other two."""

    forget: Indices
    retain: Indices
    forget_validation: Indices
    retain_validation: Indices

    @property
    def full(self) -> Indices:
        """Sorted indices of D without validation samples."""
        return np.sort(np.concatenate([self.forget, self.retain]))


def validation_split(split: Split, labels: Tensor, *, fraction: float, seed: int) -> ValidationSplit:
    """Hold out the same fraction of the forget set and of the retain set, stratified by class where possible."""
    parts: dict[str, Indices] = {}
    for name, rows in (("forget", split.forget), ("retain", split.retain)):
        if len(rows) < 2:
            raise ConfigurationError(
                f"the {name} set: expected at least 2 samples, one to measure on and one to judge by, saw {len(rows)}"
            )
        parts[name], parts[f"{name}_validation"] = hold_out(rows, labels.numpy()[rows], fraction, seed)
    return ValidationSplit(**parts)


def hold_out(rows: Indices, labels: Indices, fraction: float, seed: int) -> list[Indices]:
    """Split rows in two, the second of a fraction of them, with the same share of each class where possible."""
    size = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    counts = np.unique(labels, return_counts=True)[1]
    # scikit-learn refuses to stratify where a class has one sample, or more classes than one side has places.
    possible = counts.min() > 1 and len(counts) <= min(size, len(rows) - size)
    cut = train_test_split(rows, test_size=size, random_state=seed, stratify=labels if possible else None)
    return [np.sort(part) for part in cut]


def matching_rows(labels: Indices, like: Indices, *, seed: int) -> Indices:
    """Draw as many rows as possible so that their labels have the shares that they have in ``like``.

    Labels of ``like`` that no row has are passed over.

    Examples:
        >>> matching_rows(np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 1, 1, 9]), seed=0)
        array([0, 2, 3, 4])
    """
    classes, counts = np.unique(like, return_counts=True)
    found = [(np.flatnonzero(labels == label), count) for label, count in zip(classes, counts, strict=True)]
    scale = min((len(rows) / count for rows, count in found if len(rows)), default=0.0)
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(rows)[: round(scale * count)] for rows, count in found]))
