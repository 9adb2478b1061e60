"""Images in folders: ``train`` and ``test``, one folder for each class, as torchvision's ImageFolder reads them."""

import itertools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, final

import attrs
import torch
from torch import Tensor, nn

from unlearnkit.data.labelled import DataBundle, Groups, Images, LabelledImages, group_labels
from unlearnkit.data.transforms import image_transform
from unlearnkit.utils.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder


@final
@attrs.frozen(kw_only=True, repr=False)
class ImageFiles:
    """Image files that are read on demand."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read one image."""
        from torchvision.datasets.folder import default_loader  # noqa: PLC0415 - torchvision takes a second
        from torchvision.transforms.v2.functional import pil_to_tensor  # noqa: PLC0415

        try:
            image: Tensor = pil_to_tensor(default_loader(self.paths[index]))
        except Exception as error:  # Pillow raises any
            raise StoreError(f"cannot read the image {self.paths[index]}: {error}") from error
        return image


def image_folder(
    root: str | Path,
    *,
    groups: Groups | None = None,
    target: str | None = None,
    image_size: int | None = 224,
    on_device: bool = False,
    per_class: int | None = None,
    test_per_class: int | None = None,
    in_memory: bool = False,
) -> DataBundle:
    """Describe the images under ``root/train/<class>/`` and ``root/test/<class>/``.

    Images have shape (3, image_size, image_size), float32, normalised as ImageNet models expect (`imagenet_transform`).
    Classes are numbered in the order of their names, coarse ones in the order of ``groups``. A class without training
    images keeps its number as long as its empty folder is there.

    Args:
        root: The folder that holds ``train`` and ``test``.
        groups: Coarse name to class names, each class once: labels are then ``fine`` and ``coarse``, else ``label``.
        target: The label kind to train on; by default ``coarse`` with groups and ``label`` without.
        image_size: Height and width in pixels; None keeps the images' own.
        on_device: Resize and normalise by `DeviceTransform`, a batch at a time; all images must have one size.
        per_class: How many training images of each class to take, by file name; None takes all.
        test_per_class: The same for the test images.
        in_memory: Read and transform every image once, now, in 12 · image_size² bytes each (with ``on_device`` only
            read it), instead of in every epoch.

    Raises:
        StoreError: A folder is missing or holds no images.
        ConfigurationError: Train and test have other classes, the groups do not hold each class once, a count is below
            1, or images of several sizes are to be kept in memory.
    """
    root = Path(root)
    train, test = _folder(root / "train", allow_empty=True), _folder(root / "test")
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise ConfigurationError(f"{root}: expected the same classes in train and test, saw {only} in one of them only")
    transform = image_transform(image_size, on_device=on_device)

    def labelled(folder: "ImageFolder", key: str, count: int | None) -> LabelledImages:
        samples = _first(folder.samples, count, key=key)
        files = ImageFiles(paths=tuple(path for path, _ in samples))
        images: Images = _read(files, transform.get("transform", nn.Identity()), where=root) if in_memory else files
        fields = group_labels(torch.tensor([number for _, number in samples], dtype=torch.int64), train.classes, groups)
        fields |= {"target": target or fields["target"]} | ({} if in_memory and not on_device else transform)
        return LabelledImages(images=images, **fields)

    return DataBundle(
        name=root.name,
        train=labelled(train, "per_class", per_class),
        test=labelled(test, "test_per_class", test_per_class),
    )


def _first(samples: Sequence[tuple[str, int]], count: int | None, *, key: str) -> list[tuple[str, int]]:
    """Keep the first ``count`` samples of each class; they are sorted by class and file name."""
    if count is None:
        return list(samples)
    if count < 1:
        raise ConfigurationError(f"{key}: expected at least 1 image a class, or none given for all, saw {count}")
    groups = itertools.groupby(samples, key=operator.itemgetter(1))
    return [sample for _, some in groups for sample in itertools.islice(some, count)]


def _read(files: ImageFiles, transform: Callable[[Tensor], Tensor], *, where: Path) -> Tensor:
    images = [files[index] for index in range(len(files))]
    if len({tuple(image.shape) for image in images}) == 1:
        return transform(torch.stack(images))  # a batch at once is several times faster than one by one
    images = [transform(image) for image in images]
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise ConfigurationError(
            f"in_memory: expected images of one size in {where}, saw {len(sizes)} different ones: give an image_size"
        )
    return torch.stack(images)


def _folder(path: Path, *, allow_empty: bool = False) -> "ImageFolder":
    from torchvision.datasets import ImageFolder  # noqa: PLC0415 - torchvision takes a second

    try:
        return ImageFolder(path, allow_empty=allow_empty)
    except OSError as error:
        raise StoreError(
            f"expected one folder of images for each class in {path}: {error}: check the path, and that it holds "
            "train/<class>/ and test/<class>/"
        ) from error
