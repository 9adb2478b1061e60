"""What to forget: a class, a sub-class inside a class, or samples by their index."""

import abc
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, final

import attrs
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from unlearnkit.data.partition import Indices, Labels, Split, label_arrays, split_of
from unlearnkit.utils.errors import ConfigurationError, StoreError, raise_all

Names = Mapping[str, Sequence[str]]
_NO_NAMES: Names = {}


class ForgetSpec(abc.ABC):
    """A description of D_f that can be applied to any labelled data set.

    Subclass it for another rule: `select` is all that must be written. `split` checks what it returns.

    Attributes:
        scenario: What the literature calls it: ``"full-class"``, ``"sub-class"`` or ``"random"``.
        carries_over: Whether the rule also says which *test* samples belong to what is forgotten. A list
            of training indices says nothing about the test set.
    """

    scenario: ClassVar[str]
    carries_over: ClassVar[bool]

    @abc.abstractmethod
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        """Say which samples are forgotten.

        Args:
            labels: Label kind to int64 labels, shape (n,).
            target: The label kind that the model is trained on.
            class_names: Label kind to the names of its classes, where they are known.

        Returns:
            Shape (n,), bool. It may be all False or all True: `split` refuses that.
        """

    @final
    def split(
        self, labels: Mapping[str, Labels], *, target: str | None = None, class_names: Names = _NO_NAMES
    ) -> Split:
        """Cut a training set in two.

        Args:
            labels: Label kind to integer labels, each of shape (n,): tensors or arrays.
            target: The label kind that the model is trained on; by default the last one.
            class_names: Label kind to the names of its classes, for the checks and the messages.

        Returns:
            The forget and the retain indices.

        Raises:
            ConfigurationError: Nothing or everything would be forgotten, or a class or index does not exist.

        Example:
            >>> split = ByClass(classes=1).split({"label": np.array([0, 1, 2, 1])})
            >>> split.forget.tolist(), split.retain.tolist()
            ([1, 3], [0, 2])
        """
        split = self._cut(labels, target, class_names)
        if not len(split.forget):
            raise ConfigurationError(
                f"{self}: expected at least one sample to forget, saw none among {split.samples}: "
                "check the labels, or that this is the data set that was meant"
            )
        if not len(split.retain):
            raise ConfigurationError(
                f"{self}: expected at least one sample to retain, saw all {split.samples} forgotten: "
                "forget less, or train a new model instead"
            )
        return split

    @final
    def split_unseen(
        self, labels: Mapping[str, Labels], *, target: str | None = None, class_names: Names = _NO_NAMES
    ) -> Split:
        """Cut a test set in two by the same rule; here a part may be empty.

        Args:
            labels: See `split`.
            target: See `split`.
            class_names: See `split`.

        Returns:
            The same classes as in `split`; for indices, which say nothing about other data, an empty
            forget set.

        Example:
            >>> ByIndex(indices=[0]).split_unseen({"label": np.array([0, 1])})
            Split(random: forget 0 of 2)
        """
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
    """Forget every sample of some classes of the training target: full-class forgetting.

    Attributes:
        classes: Class numbers, or names where the data set knows them; a single one need not be in a list.

    Example:
        >>> names = {"label": ["dog", "cat"]}
        >>> ByClass(classes="cat").split({"label": np.array([0, 1, 0])}, class_names=names)
        Split(full-class: forget 1 of 3)
    """

    scenario: ClassVar[str] = "full-class"
    carries_over: ClassVar[bool] = True

    classes: tuple[int | str, ...] = attrs.field(converter=_as_classes)

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        """Select the samples whose target is one of the classes; see `ForgetSpec.select`.

        Returns:
            Shape (n,), bool.
        """
        wanted = _numbers(self.classes, labels[target], names=class_names.get(target, ()), what=f"ByClass {target}")
        return np.isin(labels[target], wanted)


@final
@attrs.frozen(kw_only=True)
class BySubclass(ForgetSpec):
    """Forget some fine classes of a model that is trained on coarse ones: sub-class forgetting.

    Attributes:
        fine: Fine class numbers or names; a single one need not be in a list. CIFAR-100's rocket is 69.
        kind: The label kind in which they are counted.

    Example:
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
        """Select the samples of the fine classes, each inside one target class; see `ForgetSpec.select`.

        Returns:
            Shape (n,), bool.

        Raises:
            ConfigurationError: There are no such labels, or a fine class lies in several target classes.
        """
        if self.kind not in labels or self.kind == target:
            raise ConfigurationError(
                f"BySubclass: expected labels of kind {self.kind!r} beside the target {target!r}, "
                f"saw {list(labels)}: use ByClass, or a data set with fine and coarse labels trained on the "
                "coarse ones"
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
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ConfigurationError(
            f"ByIndex.indices: expected whole numbers in one dimension, saw {array.dtype} of shape {array.shape}"
        )
    return tuple(array.tolist())


@final
@attrs.frozen(kw_only=True, repr=False)
class ByIndex(ForgetSpec):
    """Forget some samples of the training set, named by their index: the random scenario.

    Attributes:
        indices: Indices into the training set, without repeats, in any order.

    Example:
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
        """Read the indices from a text file: one a line; empty lines and what follows ``#`` are skipped.

        Args:
            path: UTF-8 text.

        Returns:
            The spec.

        Raises:
            StoreError: The file cannot be read, or a line is not a whole number.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read indices from {path}: {error}") from error
        numbered = [(n, line.split("#", 1)[0].strip()) for n, line in enumerate(lines, start=1)]
        kept = [(n, text) for n, text in numbered if text]
        raise_all(
            (f"line {n}: expected a whole number, saw {text!r}" for n, text in kept if not _is_whole(text)),
            where=str(path),
            error=StoreError,
        )
        return cls(indices=np.array([int(text) for _, text in kept], dtype=np.int64))

    @override
    def select(self, labels: Mapping[str, Indices], *, target: str, class_names: Names) -> NDArray[np.bool_]:
        """Select the samples of the indices; see `ForgetSpec.select`.

        Returns:
            Shape (n,), bool.
        """
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


def _is_whole(text: str) -> bool:
    return text.isascii() and text.removeprefix("-").isdigit()


def _some(values: Iterable[Any], limit: int = 5) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def _numbers(wanted: Iterable[int | str], present: Indices, *, names: Sequence[str], what: str) -> list[int]:
    known = len(names) if names else int(present.max()) + 1
    shown = f" ({names[0]} … {names[-1]})" if names else ""
    problems, numbers = [], []
    for item in wanted:
        number = names.index(item) if item in names else item
        if isinstance(number, str):
            near = difflib.get_close_matches(number, names, n=1)
            hint = f": did you mean {near[0]!r}?" if near else f": give a number between 0 and {known - 1}{shown}"
            problems.append(f"no class is named {number!r}{hint}")
        elif not 0 <= number < known:
            problems.append(f"expected a class between 0 and {known - 1}{shown}, saw {number}")
        else:
            numbers.append(number)
    raise_all(problems, where=what, error=ConfigurationError)
    return numbers
