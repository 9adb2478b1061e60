"""Data sets of the Hugging Face Hub, or of a folder that `save_to_disk` wrote, with columns by name."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, final

import attrs
from torch import Tensor

from unlearnkit.data.image_folder import image_tensor
from unlearnkit.data.labelled import DataBundle, LabelledImages
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transform
from unlearnkit.utils.errors import ConfigurationError, StoreError, nearest


@final
@attrs.frozen(kw_only=True, repr=False, eq=False)
class _Column:
    """The images of a column, decoded on demand."""

    rows: Any
    name: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        try:
            return image_tensor(self.rows[int(index)][self.name])
        except Exception as error:
            raise StoreError(f"cannot read {self.name!r} of row {index}: {' '.join(str(error).split())}") from error


def hf_dataset(
    path: str,
    *,
    subset: str | None = None,
    image: str = "image",
    label: str = "label",
    fine: str | None = None,
    train: str = "train",
    test: str = "test",
    image_size: int | None = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    on_device: bool = False,
) -> DataBundle:
    """Load images and labels with the package datasets (``pip install 'unlearnkit[datasets]'``).

    Args:
        path: A data set of the Hub, a folder that ``DatasetDict.save_to_disk`` wrote, or a folder of data files.
        subset: Which configuration of a data set that has several.
        image: Column of the images.
        label: Column of the labels to train on: `ClassLabel`, whole numbers, or text, whose classes are sorted by name.
        fine: Column of finer labels, of which some can be forgotten; the label kinds are then ``fine`` and ``coarse``.
        train: Split to train on.
        test: Split to test on.
        image_size: See `imagenet_transform`.
        mean: Likewise; the default is ImageNet's.
        std: Likewise.
        on_device: Resize and normalise by `DeviceTransform`, a batch at a time; all images must have one size.

    Raises:
        ConfigurationError: datasets is not installed, there is no such split or column, or a column does not fit.
        StoreError: The data set cannot be loaded.
    """
    transform = image_transform(image_size, mean=mean, std=std, on_device=on_device)
    library, splits = _load(path, subset)
    chosen = {
        part: _known(splits, name, what=f"{part}: {path} has no split")
        for part, name in {"train": train, "test": test}.items()
    }
    columns = {"label": label} if fine is None else {"fine": fine, "coarse": label}
    parts = {}
    for part, rows in chosen.items():
        for column in (image, *columns.values()):
            _known(rows.features, column, what=f"{path} has no column")
        if not isinstance(rows.features[image], library.Image):
            raise ConfigurationError(
                f"{path}: expected images in the column {image!r}, saw {rows.features[image]}: "
                "cast_column(…, datasets.Image()) makes them images"
            )
        names = {kind: _class_names(chosen["train"], column) for kind, column in columns.items()}
        parts[part] = LabelledImages(
            images=_Column(rows=rows.select_columns([image]), name=image),
            labels={kind: _numbers(rows, column, names[kind], where=path) for kind, column in columns.items()},
            class_names={kind: some for kind, some in names.items() if some},
            target=[*columns][-1],
            **transform,
        )
    return DataBundle(name=Path(path).name, **parts)


def _load(path: str, subset: str | None) -> tuple[Any, Any]:
    try:
        library: Any = import_module("datasets")
    except ImportError as error:
        raise ConfigurationError(
            f"data.name 'hf-datasets:{path}': cannot import datasets: {error}: pip install 'unlearnkit[datasets]'"
        ) from error
    try:
        saved = (Path(path) / "dataset_dict.json").is_file()
        return library, library.load_from_disk(path) if saved else library.load_dataset(path, subset)
    except (OSError, ValueError, RuntimeError) as error:
        raise StoreError(f"cannot load the data set {path!r}: {' '.join(str(error).split())}") from error


def _known(found: Any, name: str, *, what: str) -> Any:
    if name not in found:
        raise ConfigurationError(f"{what} {name!r}{nearest(name, found)}")
    return found[name]


def _class_names(rows: Any, column: str) -> tuple[str, ...]:
    """Names of a ClassLabel, or the sorted texts of a column; none of whole numbers."""
    feature = rows.features[column]
    if hasattr(feature, "names"):
        return tuple(feature.names)
    return tuple(sorted(rows.unique(column))) if str(getattr(feature, "dtype", "")).endswith("string") else ()


def _numbers(rows: Any, column: str, names: tuple[str, ...], *, where: str) -> Any:
    values = rows.with_format(None)[column][:]
    if not names or not values or not isinstance(values[0], str):
        return values
    numbers = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ConfigurationError(f"{where}: the class {unknown[0]!r} of {column!r} is in the test split alone")
    return [numbers[value] for value in values]
