"""Images with one or several kinds of labels, and the training and test set of a task."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, Self, final

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from unlearnkit.data.batches import Deferred
from unlearnkit.data.splits import ForgetSpec, Indices, Labels, Split, label_arrays
from unlearnkit.utils.errors import ConfigurationError, raise_all

Transform = Callable[[Tensor], Tensor]
Groups = Mapping[str, Sequence[str]]
"""Coarse class name to the names of its fine classes."""


class Images(Protocol):
    """Images by index: a tensor of shape (n, channels, h, w), or anything that loads them one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


def _freeze_labels(labels: Mapping[str, Labels]) -> dict[str, Tensor]:
    # A plain dict: loader workers pickle the data set, and a mapping proxy cannot be pickled.
    return {kind: torch.from_numpy(array) for kind, array in label_arrays(labels).items()}


def _freeze_names(names: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {kind: tuple(some) for kind, some in names.items()}


def _freeze_rows(rows: Any) -> Tensor | None:
    return None if rows is None else torch.as_tensor(np.asarray(rows), dtype=torch.int64).reshape(-1)


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class LabelledImages(Dataset[tuple[Any, ...]]):
    """A data set whose items are ``(x, *labels)``, the training target last, as ``(x, fine, coarse)``.

    Attributes:
        images: A uint8 or float tensor of shape (n, channels, h, w), or an object that loads image i on demand.
        labels: Label kind to integer labels ≥ 0, each of shape (n,); kept as int64 tensors.
        target: The label kind that a model is trained on.
        class_names: Label kind to the names of its classes, where they are known.
        transform: Applied to each image when it is read. A random one makes importances irreproducible.
        device_transform: Applied, in place of ``transform``, to a whole batch on the device; see `DeviceTransform`.
        rows: Indices of these samples' images, shape (n,), int64, or None for all in order.

    Examples:
        >>> labels = {"coarse": [0, 0], "fine": [4, 5]}
        >>> data = LabelledImages(images=torch.zeros(2, 1, 8, 8), labels=labels, target="coarse")
        >>> data[1][1:], len(data)
        ((tensor(5), tensor(0)), 2)
    """

    images: Images
    labels: Mapping[str, Tensor] = attrs.field(converter=_freeze_labels)
    target: str
    class_names: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, converter=_freeze_names)
    transform: Transform | None = None
    device_transform: Transform | None = None
    rows: Tensor | None = attrs.field(default=None, converter=_freeze_rows)

    def __attrs_post_init__(self) -> None:
        if self.transform is not None and self.device_transform is not None:
            raise ConfigurationError("LabelledImages: expected transform or device_transform, saw both")
        if self.target not in self.labels:
            raise ConfigurationError(
                f"LabelledImages.target: expected one of the label kinds {list(self.labels)}, saw {self.target!r}"
            )
        count = len(self.images) if self.rows is None else len(self.rows)
        problems = [] if count == len(self) else [f"expected a label for each of {count} images, saw {len(self)}"]
        if self.rows is not None and bool(((self.rows < 0) | (self.rows >= len(self.images))).any()):
            problems.append(f"rows: expected image numbers between 0 and {len(self.images) - 1}")
        for kind, names in self.class_names.items():
            other = [name for name in names if not isinstance(name, str)]
            if other:
                problems.append(f"class_names: expected text for each class of {kind!r}, saw {other[0]!r}")
        for kind, labels in self.labels.items():
            low, high = int(labels.min()), int(labels.max())
            known = len(self.class_names.get(kind, ())) or high + 1
            if low < 0 or high >= known:
                problems.append(f"{kind}: expected labels between 0 and {known - 1}, saw {low} … {high}")
        raise_all(problems, where="LabelledImages", error=ConfigurationError)

    @override
    def __repr__(self) -> str:
        return f"LabelledImages({len(self)} samples, labels {', '.join(self.kinds)})"

    def __len__(self) -> int:
        return len(self.labels[self.target])

    @override
    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = index if self.rows is None else int(self.rows[index])
        image = self.images[row]
        x: Any = image if self.transform is None else self.transform(image)
        if self.device_transform is not None:
            x = Deferred(raw=image, finish=self.device_transform)
        return (x, *(self.labels[kind][index] for kind in self.kinds))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the label kinds in the order of an item: the target last."""
        return (*(kind for kind in self.labels if kind != self.target), self.target)

    @property
    def targets(self) -> Tensor:
        """Return the labels that a model is trained on: shape (n,), int64."""
        return self.labels[self.target]

    @property
    def num_classes(self) -> int:
        """Return how many classes the target has: as many as have names, else the highest label + 1."""
        return len(self.class_names.get(self.target, ())) or int(self.targets.max()) + 1

    def subset(self, indices: Indices | Tensor | Sequence[int]) -> Self:
        """Return the samples of some indices, in that order; images are shared, not copied.

        Examples:
            >>> data = LabelledImages(images=torch.zeros(3, 1, 8, 8), labels={"label": [5, 6, 7]}, target="label")
            >>> data.subset([2, 0]).targets
            tensor([7, 5])
        """
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or not chosen.size or not np.issubdtype(chosen.dtype, np.integer):
            raise ConfigurationError(
                "LabelledImages.subset: expected at least one whole number in one dimension, "
                f"saw {chosen.dtype} of shape {chosen.shape}"
            )
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise ConfigurationError(
                f"LabelledImages.subset: expected indices between 0 and {len(self) - 1}, "
                f"saw {chosen.min()} … {chosen.max()}"
            )
        index = torch.from_numpy(chosen.astype(np.int64))
        rows = index if self.rows is None else self.rows[index]
        return attrs.evolve(self, rows=rows, labels={kind: some[index] for kind, some in self.labels.items()})


@final
@attrs.frozen(kw_only=True, eq=False, repr=False)
class DataBundle:
    """The full training set D and the test set of one task, with the same label kinds, class names and target.

    Examples:
        >>> from unlearnkit.data import digits
        >>> digits()
        DataBundle(digits: train 1347, test 450, target label of 10 classes)
    """

    name: str
    train: LabelledImages
    test: LabelledImages

    def __attrs_post_init__(self) -> None:
        problems = []
        for what, field in {"label kinds": "kinds", "class names": "class_names"}.items():
            mine, theirs = getattr(self.train, field), getattr(self.test, field)
            if mine != theirs:
                problems.append(f"{what}: expected the same in train and test, saw {mine!r} and {theirs!r}")
        raise_all(problems, where=f"DataBundle {self.name!r}", error=ConfigurationError)

    @override
    def __repr__(self) -> str:
        return (
            f"DataBundle({self.name}: train {len(self.train)}, test {len(self.test)}, "
            f"target {self.train.target} of {self.num_classes} classes)"
        )

    @property
    def num_classes(self) -> int:
        """Return how many outputs a model needs."""
        return max(self.train.num_classes, self.test.num_classes)


@final
@attrs.frozen(kw_only=True, eq=False)
class ForgetSplit:
    """The splits of a training set, into D_f and D_r, and of a test set, where either part may be empty."""

    train: Split
    test: Split


def forget_split(bundle: DataBundle, spec: ForgetSpec) -> ForgetSplit:
    """Split the training and the test set by one rule; `ByIndex` forgets nothing of the test set.

    Examples:
        >>> from unlearnkit.data import ByClass, digits
        >>> forget_split(digits(), ByClass(classes=3))
        ForgetSplit(train=Split(full-class: forget 137 of 1347), test=Split(full-class: forget 46 of 450))
    """
    names: dict[str, tuple[str, ...]] = {}
    for kind in bundle.train.kinds:
        # Without names the range would come from the labels present, and a test set may lack the last class.
        highest = max(int(part.labels[kind].max()) for part in (bundle.train, bundle.test))
        names[kind] = bundle.train.class_names.get(kind, ()) or tuple(map(str, range(highest + 1)))
    target = bundle.train.target
    return ForgetSplit(
        train=spec.split(bundle.train.labels, target=target, class_names=names),
        test=spec.split_unseen(bundle.test.labels, target=target, class_names=names),
    )


def group_labels(fine: Tensor, names: Sequence[str], groups: Groups | None) -> dict[str, Any]:
    """Return labels, class names and target of `LabelledImages`: one kind, or fine and coarse labels by groups."""
    if groups is None:
        return {"labels": {"label": fine}, "class_names": {"label": names}, "target": "label"}
    labels = {"fine": fine, "coarse": coarse_of_fine(groups, names)[fine]}
    return {"labels": labels, "class_names": {"fine": names, "coarse": groups}, "target": "coarse"}


def coarse_of_fine(groups: Groups, fine_names: Sequence[str]) -> Tensor:
    """Return the coarse class of every fine class."""
    as_text = [name for name, members in groups.items() if isinstance(members, str)]
    times = Counter(member for members in groups.values() for member in members)
    known = list(fine_names)
    problems = [f"{name}: expected a list of class names, saw one string" for name in as_text] or [
        *(f"{name}: expected at least one class, saw none" for name, members in groups.items() if not members),
        *(f"{name}: expected in one group, saw it in none" for name in fine_names if not times[name]),
        *(f"{name}: expected in one group, saw it {count} times" for name, count in times.items() if count > 1),
        *(f"{name}: expected one of {known}, saw an unknown class" for name in times if name not in known),
    ]
    raise_all(problems, where="groups", error=ConfigurationError)
    coarse = {member: number for number, members in enumerate(groups.values()) for member in members}
    return torch.tensor([coarse[name] for name in fine_names], dtype=torch.int64)
