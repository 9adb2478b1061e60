"""The transform of images, for one or a batch on a device: resize, crop, scale to 0 … 1, normalise."""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, final

import attrs
import torch
from torch import Tensor

from unlearnkit.utils.errors import ConfigurationError, MismatchError

if TYPE_CHECKING:
    from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _as_numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, str):
        with suppress(TypeError, ValueError):
            return tuple(map(float, values))
    raise ConfigurationError(f"mean and std: expected a list of numbers, saw {values!r}")


def _check_size(_: Any, __: Any, image_size: int | None) -> None:
    if image_size is not None and image_size < 1:
        raise ConfigurationError(f"image_size: expected at least 1 pixel or None, saw {image_size}")


def _check_channels(_: Any, field: "attrs.Attribute[Any]", values: tuple[float, ...]) -> None:
    low = 0.0 if field.name == "std" else -math.inf
    if not values or not all(low < value < math.inf for value in values):
        wanted = "positive numbers" if field.name == "std" else "numbers"
        raise ConfigurationError(f"{field.name}: expected {wanted}, one for each channel, saw {list(values)}")


def imagenet_transform(
    image_size: int | None = 224, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> "v2.Transform":
    """Compose Resize, CenterCrop, ToDtype(float32) and Normalize, by default with ImageNet's mean and deviation.

    It takes uint8 RGB images of shape (3, h, w) or (n, 3, h, w) to (…, 3, image_size, image_size), float32; with None
    they keep their size. ``mean`` and ``std`` are of each channel on the scale 0 … 1. It is never random.

    Examples:
        >>> imagenet_transform(8)(torch.zeros(2, 3, 4, 6, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 8])
    """
    checked = DeviceTransform(image_size=image_size, mean=mean, std=std)
    from torchvision.transforms import v2  # noqa: PLC0415 - torchvision takes a second

    sizing = [] if image_size is None else [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*sizing, to_float, v2.Normalize(mean=list(checked.mean), std=list(checked.std))])


@final
@attrs.frozen(kw_only=True)
class DeviceTransform:
    """`imagenet_transform` for a batch of images, on the batch's device and in float32.

    Bilinear with antialiasing and ``align_corners=False``, the shorter side to ``image_size``, then a centre crop.
    `imagenet_transform` rounds uint8 images to whole levels of brightness as it resizes, so the two differ by up to
    1/255 before normalisation; on float images by float rounding only.

    Attributes:
        image_size: As for `imagenet_transform`.
        mean: Of each channel, on the scale 0 … 1.
        std: Standard deviation of each channel, likewise.
    """

    image_size: int | None = attrs.field(default=224, validator=_check_size)
    mean: tuple[float, ...] = attrs.field(default=IMAGENET_MEAN, converter=_as_numbers, validator=_check_channels)
    std: tuple[float, ...] = attrs.field(default=IMAGENET_STD, converter=_as_numbers, validator=_check_channels)

    def __attrs_post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ConfigurationError(f"expected mean and std of the same channels, saw {self.mean} and {self.std}")

    def __call__(self, images: Tensor) -> Tensor:
        """Transform a batch."""
        known = images.dtype == torch.uint8 or images.is_floating_point()
        if images.dim() != 4 or images.shape[1] != len(self.mean) or not known:
            raise MismatchError(
                f"DeviceTransform: expected images of shape (n, {len(self.mean)}, h, w), uint8 or floating, saw "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        x = images.float() if images.is_floating_point() else images / 255
        if self.image_size is None or min(images.shape[-2:]) >= self.image_size:
            return self._normalised(self._resized(x))
        # The weights of a resize add up to 1, so normalising first gives the same, on fewer pixels.
        return self._resized(self._normalised(x))

    def _resized(self, images: Tensor) -> Tensor:
        if self.image_size is None:
            return images
        from torchvision.transforms.v2 import functional  # noqa: PLC0415 - torchvision takes a second

        size = [self.image_size]
        resized = functional.resize(images, size, interpolation=functional.InterpolationMode.BILINEAR, antialias=True)
        cropped: Tensor = functional.center_crop(resized, size)
        return cropped

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (_per_channel(t, images.device) for t in (self.mean, self.std))
        return (images - mean) / std


@functools.cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copy constants to a device once; each copy would wait for the device."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


def image_transform(
    image_size: int | None, *, mean: Sequence[float], std: Sequence[float], on_device: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the `LabelledImages` argument for a transform of RGB images on the device or of single ones."""
    device = DeviceTransform(image_size=image_size, mean=mean, std=std)
    if len(device.mean) != 3:
        raise ConfigurationError(f"mean: expected 3 numbers, for red, green and blue, saw {list(device.mean)}")
    if on_device:
        return {"device_transform": device}
    return {"transform": imagenet_transform(image_size, mean=mean, std=std)}
