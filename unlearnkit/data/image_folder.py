"""Images in folders: ``train`` and ``test``, one folder for each class, as torchvision's ImageFolder reads them."""

import itertools
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

import attrs
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from unlearnkit.data.labelled import DataBundle, Groups, Images, LabelledImages, group_labels
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_transform
from unlearnkit.utils.errors import ConfigurationError, StoreError, UnlearnKitWarning


@final
@attrs.frozen(kw_only=True, repr=False)
class ImageFiles:
    """Image files that are read on demand."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read one image."""
        return read_image(self.paths[index])


def read_image(path: str | Path) -> Tensor:
    """Read an image file as uint8 RGB of shape (3, h, w), upright as its EXIF data say.

    16 bits a channel become 8. An image with several frames or with transparent pixels, 32-bit numbers, or a file that
    cannot be decoded is a `StoreError`: there is no single right way to make such an image RGB.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # reading a pipe or a device may never end
            raise StoreError("expected a file, saw a folder, a pipe or a device")
        with Image.open(path) as image:
            return image_tensor(image)
    except Exception as error:
        said = " ".join(str(error).split())
        raise StoreError(f"cannot read the image {path}: {said or type(error).__name__}") from error


def image_tensor(image: Image.Image) -> Tensor:
    """Convert an image as `read_image` does."""
    from torchvision.transforms.v2.functional import pil_to_tensor  # noqa: PLC0415 - torchvision takes a second

    rgb: Tensor = pil_to_tensor(_rgb(image))
    return rgb


def _rgb(image: Image.Image) -> Image.Image:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photo with previews
        raise StoreError(f"expected one image, saw {frames}: save the one that is meant alone")
    image = ImageOps.exif_transpose(image)
    if image.mode in {"I", "F"}:
        raise StoreError(f"expected 8 or 16 bits a channel, saw 32 (mode {image.mode}): convert the images")
    if image.mode.startswith("I;16"):
        levels = (np.asarray(image, dtype=np.uint32) + 128) // 257  # 0 … 65535 to 0 … 255, rounded
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            raise StoreError("expected opaque pixels, saw transparent ones: draw the images on a background first")
    return image.convert("RGB")


def image_folder(
    root: str | Path,
    *,
    groups: Groups | None = None,
    target: str | None = None,
    image_size: int | None = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    on_device: bool = False,
    per_class: int | None = None,
    test_per_class: int | None = None,
    in_memory: bool = False,
) -> DataBundle:
    """Describe the images under ``root/train/<class>/`` and ``root/test/<class>/``.

    Images have shape (3, image_size, image_size), float32, normalised by ``mean`` and ``std`` (`imagenet_transform`);
    `read_image` says how unusual files are read. Classes are the folders of ``train``, numbered in the order of their
    names, coarse ones in the order of ``groups``; hidden folders are left out. A class may be without images in one of
    the two parts; a class without training images keeps its number as long as its empty folder is there.

    Args:
        root: The folder that holds ``train`` and ``test``.
        groups: Coarse name to class names, each class once: labels are then ``fine`` and ``coarse``, else ``label``.
        target: The label kind to train on; by default ``coarse`` with groups and ``label`` without.
        image_size: Height and width in pixels; None keeps the images' own.
        mean: Of each channel, on the scale 0 … 1; by default ImageNet's.
        std: Standard deviation of each channel, likewise.
        on_device: Resize and normalise by `DeviceTransform`, a batch at a time; all images must have one size.
        per_class: How many training images of each class to take, by file name; None takes all.
        test_per_class: The same for the test images.
        in_memory: Read and transform every image once, now, in 12 · image_size² bytes each (with ``on_device`` only
            read it), instead of in every epoch.

    Raises:
        StoreError: A folder is missing or holds no images.
        ConfigurationError: A class is in the test set alone, the groups do not hold each class once, a count is below
            1, or images of several sizes are to be kept in memory.
    """
    root = Path(root)
    classes, unseen = _classes(root / "train"), _classes(root / "test")
    if not set(unseen) <= set(classes):
        only = sorted(set(classes) ^ set(unseen))
        raise ConfigurationError(f"{root}: expected the same classes in train and test, saw {only} in one of them only")
    transform = image_transform(image_size, mean=mean, std=std, on_device=on_device)

    def labelled(part: str, key: str, count: int | None) -> LabelledImages:
        samples = _first(_samples(root / part, classes), count, key=key)
        files = ImageFiles(paths=tuple(path for path, _ in samples))
        images: Images = _read(files, transform.get("transform", nn.Identity()), where=root) if in_memory else files
        fields = group_labels(torch.tensor([number for _, number in samples], dtype=torch.int64), classes, groups)
        fields |= {"target": target or fields["target"]} | ({} if in_memory and not on_device else transform)
        return LabelledImages(images=images, **fields)

    return DataBundle(
        name=root.name,
        train=labelled("train", "per_class", per_class),
        test=labelled("test", "test_per_class", test_per_class),
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


def _classes(path: Path) -> list[str]:
    from torchvision.datasets.folder import find_classes  # noqa: PLC0415 - torchvision takes a second

    with _explained(path):
        classes = [name for name in find_classes(path)[0] if not name.startswith(".")]  # such as .ipynb_checkpoints
        if not classes:
            raise FileNotFoundError("there are hidden folders only")
    return classes


def _samples(path: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """List the image files and the numbers of their classes, sorted by class and name."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # noqa: PLC0415 - torchvision takes a second

    numbers, others = {name: number for number, name in enumerate(classes)}, list[str]()

    def is_image(file: str) -> bool:
        known = file.lower().endswith(IMG_EXTENSIONS)
        if not known and not Path(file).name.startswith("."):
            others.append(file)
        return known

    with _explained(path):
        found: list[tuple[str, int]] = make_dataset(path, numbers, is_valid_file=is_image, allow_empty=True)
        if not found:
            raise FileNotFoundError("there is no image")
    if others:
        warnings.warn(
            f"{path}: {len(others)} files were left out, such as {others[0]}: expected names that end with "
            f"{', '.join(IMG_EXTENSIONS)}",
            UnlearnKitWarning,
            stacklevel=4,
        )
    return found


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"expected one folder of images for each class in {path}: {error}: check the path, and that it holds "
            "train/<class>/ and test/<class>/"
        ) from error
