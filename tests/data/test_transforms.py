"""The notebook's image transform."""

import pytest
import torch
from PIL import Image
from torchvision import transforms as notebook

from unlearnkit.data import imagenet_transform
from unlearnkit.utils.errors import ConfigurationError

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)[:, None, None]


@pytest.fixture
def image():
    return torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_normalisation_is_worked_out_in_float64(image):
    seen = imagenet_transform(None)(image)
    expected = (image.double() / 255 - MEAN) / STD
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), expected, rtol=0, atol=1e-6)


def test_it_is_the_notebooks_transform_up_to_rounding(image):
    theirs = notebook.Compose(
        [
            notebook.Resize(64),
            notebook.ToTensor(),
            notebook.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(Image.fromarray(image.permute(1, 2, 0).numpy()))
    ours = imagenet_transform(64)(image)
    assert ours.shape == theirs.shape == (3, 64, 64)
    one_level = 1 / 255 / 0.224  # resizing rounds to integer levels of brightness
    assert float((ours - theirs).abs().max()) <= 1.05 * one_level


def test_a_batch_is_its_images(image):
    batch = torch.stack([image, 255 - image])
    transform = imagenet_transform(48)
    assert torch.equal(transform(batch)[1], transform(255 - image))


def test_the_shape_does_not_depend_on_the_image():
    assert imagenet_transform(20)(torch.zeros(3, 10, 33, dtype=torch.uint8)).shape == (3, 20, 20)


@pytest.mark.parametrize("size", [0, -1])
def test_a_size_out_of_range(size):
    with pytest.raises(ConfigurationError, match=f"image_size: expected at least 1 pixel or None, saw {size}"):
        imagenet_transform(size)
