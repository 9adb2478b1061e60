"""The one image transform of the notebook: resize, scale to 0 … 1, normalise as ImageNet models expect."""

import torch
from torchvision.transforms import v2

from unlearnkit.errors import ConfigurationError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def imagenet_transform(image_size: int | None = 224) -> v2.Transform:
    """Make Resize, centre crop, to float32 and Normalize with the mean and standard deviation of ImageNet.

    It takes uint8 RGB tensors of shape (3, h, w), or batches of them of shape (n, 3, h, w), and is never random: the
    same image always gives the same tensor. The crop does nothing to square images.

    Args:
        image_size: Height and width of the result in pixels, or None to keep the size that images have.

    Returns:
        A transform to shape (…, 3, image_size, image_size), float32.

    Raises:
        ConfigurationError: The size is not at least 1.

    Example:
        >>> imagenet_transform(8)(torch.zeros(2, 3, 4, 6, dtype=torch.uint8)).shape
        torch.Size([2, 3, 8, 8])
    """
    if image_size is not None and image_size < 1:
        raise ConfigurationError(f"image_size: expected at least 1 pixel or None, saw {image_size}")
    sizing = [] if image_size is None else [v2.Resize(image_size, antialias=True), v2.CenterCrop(image_size)]
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([*sizing, to_float, v2.Normalize(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))])
