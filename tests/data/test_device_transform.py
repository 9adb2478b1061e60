"""Transforms applied to batches on the device equal those of single images."""

import pytest
import torch
from cifar_archive import part, write
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from unlearnkit import CrossEntropy, DiagonalFisher
from unlearnkit.data import DeviceTransform, LabelledImages, cifar100, imagenet_transform, loader
from unlearnkit.data.batches import Deferred, batch_size, digest, take, to_device
from unlearnkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from unlearnkit.evaluation import loss_and_accuracy
from unlearnkit.models.training import Training, train
from unlearnkit.utils.errors import ConfigurationError, MismatchError

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def axis(old, new):
    """The matrix of a one-dimensional bilinear resize with antialiasing, from its definition, in float64."""
    scale = old / new
    support = max(scale, 1.0)
    rows = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * scale
        for j in range(old):
            rows[i, j] = max(0.0, 1 - abs(j + 0.5 - centre) / support)
    return rows / rows.sum(1, keepdim=True)


def oracle(images, side):
    """Scale, resize the shorter side, crop and normalise: all in float64, with matrices."""
    h, w = images.shape[-2:]
    short = min(h, w)
    new_h, new_w = int(side * h / short), int(side * w / short)
    x = images.double() / 255
    x = axis(h, new_h) @ x @ axis(w, new_w).T
    top, left = round((new_h - side) / 2), round((new_w - side) / 2)
    x = x[..., top : top + side, left : left + side]
    mean, std = (torch.tensor(t, dtype=torch.float64).view(-1, 1, 1) for t in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def test_a_grey_image_stays_grey_at_any_size():
    grey = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)  # 0.2
    seen = DeviceTransform(image_size=9)(grey)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        expected = torch.full((9, 9), (0.2 - mean) / std)
        torch.testing.assert_close(seen[0, channel], expected, rtol=0, atol=1e-5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(2, 20), st.integers(2, 20), st.integers(2, 24), st.integers(0, 99))
def test_it_is_the_definition_of_a_bilinear_resize_with_antialiasing(n, h, w, side, seed):
    images = draw(n, 3, h, w, seed=seed)
    seen = DeviceTransform(image_size=side)(images)
    assert seen.shape == (n, 3, side, side)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), oracle(images, side), rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", [20, 32, 48, None])
def test_on_float_images_it_is_torchvisions_transform_of_each_image(side):
    images = draw(4, 3, 32, 32).float() / 255
    sizing = [] if side is None else [v2.Resize(side, antialias=True), v2.CenterCrop(side)]
    one_by_one = v2.Compose([*sizing, v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))])
    expected = torch.stack([one_by_one(image) for image in images])
    torch.testing.assert_close(DeviceTransform(image_size=side)(images), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [20, 48])
def test_on_uint8_images_it_differs_by_the_rounding_of_single_images_to_levels(side):
    images = draw(4, 3, 32, 32)
    expected = torch.stack([imagenet_transform(side)(image) for image in images])
    level = 1 / 255 / min(IMAGENET_STD)
    difference = (DeviceTransform(image_size=side)(images) - expected).abs().max()
    assert 0 < float(difference) <= 1.01 * level


def test_without_resizing_uint8_images_are_those_of_the_transform_of_each():
    images = draw(3, 3, 8, 8)
    expected = torch.stack([imagenet_transform(None)(image) for image in images])
    torch.testing.assert_close(DeviceTransform(image_size=None)(images), expected, rtol=0, atol=2e-6)


def test_an_image_does_not_depend_on_its_batch():
    images, transform = draw(5, 3, 16, 16), DeviceTransform(image_size=24)
    torch.testing.assert_close(transform(images)[2:3], transform(images[2:3]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [draw(3, 8, 8), draw(1, 1, 8, 8), draw(1, 3, 8, 8).long()],
    ids=["one image", "one channel", "int64"],
)
def test_other_shapes_and_dtypes_are_refused(images):
    with pytest.raises(MismatchError, match=r"expected images of shape \(n, 3, h, w\), uint8 or floating, saw"):
        DeviceTransform()(images)


def test_a_size_out_of_range():
    with pytest.raises(ConfigurationError, match="image_size: expected at least 1 pixel or None, saw 0"):
        DeviceTransform(image_size=0)


# In data


def datasets(side=12):
    images, labels = draw(10, 3, 8, 8), {"label": [i % 3 for i in range(10)]}
    one_by_one = LabelledImages(images=DeviceTransform(image_size=side)(images), labels=labels, target="label")
    deferred = LabelledImages(
        images=images, labels=labels, target="label", device_transform=DeviceTransform(image_size=side)
    )
    return one_by_one, deferred


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_yields_raw_batches_that_are_transformed_on_the_device(workers):
    expected, deferred = datasets()
    for raw, plain in zip(loader(deferred, batch_size=4, workers=workers), loader(expected, batch_size=4), strict=True):
        assert isinstance(raw[0], Deferred)
        assert (raw[0].raw.dtype, batch_size(raw)) == (torch.uint8, len(plain[0]))
        x, y = to_device(raw, CPU)
        torch.testing.assert_close(x, plain[0], rtol=0, atol=1e-6)
        assert torch.equal(y, plain[1])


def test_batches_are_cut_hashed_and_moved_as_they_are():
    _, deferred = datasets()
    (batch,) = loader(deferred, batch_size=10)
    part_ = take(batch, slice(2, 5))
    assert batch_size(part_) == 3
    assert digest(part_) != digest(take(batch, slice(3, 6)))
    assert to_device(part_, CPU)[0].shape == (3, 3, 12, 12)


def test_training_importance_and_evaluation_see_the_same_images():
    found = []
    for data in datasets():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
        history = train(model, data, training=Training(epochs=1, batch_size=4))
        importance = DiagonalFisher().estimate(model, loader(data, batch_size=4), objective=CrossEntropy())
        scores = loss_and_accuracy(model, loader(data, batch_size=4))
        found.append((history[0].loss, importance.totals["1.weight"], scores.loss))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), rtol=1e-4, atol=1e-6)


def test_only_one_transform_is_allowed():
    with pytest.raises(ConfigurationError, match="expected transform or device_transform, saw both"):
        LabelledImages(
            images=draw(1, 3, 4, 4),
            labels={"label": [0]},
            target="label",
            transform=imagenet_transform(4),
            device_transform=DeviceTransform(image_size=4),
        )


def test_images_of_several_sizes_are_refused_with_advice():
    samples = [Deferred(raw=draw(3, side, side), finish=DeviceTransform()) for side in (4, 5)]
    with pytest.raises(MismatchError, match=r"must have one shape, saw .*on_device=False"):
        next(iter(DataLoader(samples, batch_size=2)))


def test_cifar_on_the_device(tmp_path):
    write(tmp_path, train=part([69, 17]), test=part([69], seed=1))
    bundle = cifar100(tmp_path, image_size=40, on_device=True, verify=False)
    (batch,) = loader(bundle.train, batch_size=2)
    x, fine, _ = to_device(batch, CPU)
    assert x.shape == (2, 3, 40, 40)
    assert fine.tolist() == [69, 17]
    near = cifar100(tmp_path, image_size=40, verify=False).train[1][0]
    assert float((x[1] - near).abs().max()) <= 1.01 / 255 / min(IMAGENET_STD)


@pytest.mark.gpu
def test_the_same_numbers_on_a_gpu():
    images, transform = draw(4, 3, 32, 32), DeviceTransform(image_size=224)
    torch.testing.assert_close(transform(images.cuda()).cpu(), transform(images), rtol=0, atol=1e-5)
