"""The notebook's image transform."""

import pytest
import torch
from cifar_archive import part, write
from PIL import Image
from torchvision import transforms as notebook

from unlearnkit.data import DeviceTransform, cifar100, image_folder, imagenet_transform
from unlearnkit.data.transforms import image_transform
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


CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


@pytest.mark.parametrize("on_device", [True, False])
def test_any_mean_and_deviation(image, on_device):
    transform = DeviceTransform(image_size=None, **CIFAR) if on_device else imagenet_transform(None, **CIFAR)
    seen = transform(image[None])[0].double()
    mean, std = (torch.tensor(CIFAR[name], dtype=torch.float64)[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(seen, (image.double() / 255 - mean) / std, rtol=0, atol=1e-6)


@pytest.mark.parametrize("on_device", [True, False])
def test_every_data_set_of_images_takes_them(tmp_path, on_device):
    write(tmp_path, train=part([69]), test=part([69], seed=1))
    for split in ("train", "test"):
        (tmp_path / split / "car").mkdir(parents=True)
        Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / split / "car" / "0.png")
    for make, options in ((cifar100, {"verify": False}), (image_folder, {})):
        usual, other = (
            make(tmp_path, image_size=4, on_device=on_device, **options, **some).train[0][0] for some in ({}, CIFAR)
        )
        if on_device:
            usual, other = (x.finish(x.raw[None])[0] for x in (usual, other))
        mean, std = (torch.tensor(CIFAR[name])[:, None, None] for name in ("mean", "std"))
        torch.testing.assert_close(other * std + mean, usual * STD.float() + MEAN.float(), rtol=0, atol=1e-6)
        assert not torch.allclose(usual, other)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"std": [0.2, 0.0, 0.2]}, "std: expected positive numbers, one for each channel, saw"),
        ({"std": [0.2, -1.0, 0.2]}, "std: expected positive numbers"),
        ({"mean": [0.2, float("nan"), 0.2]}, "mean: expected numbers, one for each channel"),
        ({"mean": [0.5]}, "expected mean and std of the same channels"),
        ({"mean": [0.5], "std": [0.5]}, "mean: expected 3 numbers, for red, green and blue"),
        ({"mean": "abc"}, "mean and std: expected a list of numbers, saw 'abc'"),
        ({"mean": "555"}, "mean and std: expected a list of numbers, saw '555'"),
        ({"mean": 0.5}, "mean and std: expected a list of numbers, saw 0.5"),
    ],
)
def test_mean_and_deviation_that_cannot_be_used(changed, message):
    for on_device in (True, False):
        with pytest.raises(ConfigurationError, match=message):
            image_transform(8, **{**CIFAR, **changed}, on_device=on_device)
