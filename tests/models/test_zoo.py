"""The notebook's ResNet18, the small residual network and the small net of the demonstration."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from unlearnkit.models.zoo import RandomShiftAndFlip, resnet18_classifier, small_cnn, small_resnet
from unlearnkit.utils.errors import ConfigurationError


def weights(model):
    return sum(p.numel() for p in model.parameters())


def test_the_small_net_has_the_shapes_it_should():
    model = small_cnn(num_classes=7, channels=2, width=4)
    assert model(torch.zeros(3, 2, 8, 8)).shape == (3, 7)
    # Two convolutions of 3 × 3 without bias, two pairs of BatchNorm weights, one linear head on 8 × 2 × 2 features.
    assert weights(model) == 2 * 4 * 9 + 2 * 4 + 4 * 8 * 9 + 2 * 8 + (8 * 2 * 2) * 7 + 7
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 2
    assert 1_000 < weights(small_cnn()) < 100_000


def test_the_small_net_at_another_size():
    assert small_cnn(channels=3, image_size=32)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_resnet_is_torchvisions_with_dropout_and_a_linear_head():
    model = resnet18_classifier(num_classes=20, dropout=0.3, seed=0)
    original = resnet18(weights=None)
    assert weights(model) == weights(original) - weights(original.fc) + 512 * 20 + 20
    assert model.head[0].p == 0.3
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model(torch.zeros(2, 3, 64, 64))
        features = model.backbone(torch.zeros(2, 3, 64, 64))
    assert logits.shape == (2, 20)
    assert features.shape == (2, 512)
    expected = features.double() @ model.head[1].weight.double().T + model.head[1].bias.double()
    torch.testing.assert_close(logits.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_small_residual_network_changes_images_in_training_only():
    model, x = small_resnet(num_classes=4, width=4, seed=0), torch.randn(6, 3, 32, 32)
    assert model(x).shape == (6, 4)
    model.eval()
    assert torch.equal(model.augment(x), x)
    assert not isinstance(small_resnet(width=4, augment=False).augment, RandomShiftAndFlip)


def test_images_are_shifted_and_flipped_as_a_loop_does():
    x = torch.randn(40, 2, 5, 6)
    torch.manual_seed(3)
    seen = RandomShiftAndFlip(2).train()(x)
    torch.manual_seed(3)
    shifts, flips = torch.randint(5, (2, 40, 1)), torch.rand(40, 1) < 0.5
    assert 5 < int(flips.sum()) < 35
    for one, image, down, right, flip in zip(seen, x, *shifts.flatten(1).tolist(), flips, strict=True):
        expected = torch.zeros_like(image)
        for row in range(5):
            for column in range(6):
                i, j = row + down - 2, column + right - 2
                if 0 <= i < 5 and 0 <= j < 6:
                    expected[:, row, 5 - column if flip else column] = image[:, i, j]
        assert torch.equal(one, expected)


def test_dropout_acts_in_training_only():
    model = resnet18_classifier(num_classes=3, dropout=0.9, seed=0).train()
    features = torch.ones(64, 512)
    with torch.no_grad():
        assert not torch.equal(model.head(features)[0], model.head(features)[1])
        model.eval()
        assert torch.equal(model.head(features)[0], model.head(features)[1])


@pytest.mark.parametrize("make", [small_cnn, small_resnet, lambda **more: resnet18_classifier(num_classes=3, **more)])
def test_a_seed_repeats_the_weights_and_leaves_the_global_state_alone(make):
    before = torch.get_rng_state()
    first, second, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_without_a_seed_the_global_state_decides():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        first, second = small_cnn(), small_cnn()
        torch.default_generator.manual_seed(5)
        again = small_cnn()
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize("pretrained", [False, True])
def test_pretrained_asks_torchvision_for_imagenet_weights(monkeypatch, pretrained):
    asked = []

    def record(*, weights):
        asked.append(weights)
        return resnet18(weights=None)

    monkeypatch.setattr(torchvision.models, "resnet18", record)
    resnet18_classifier(num_classes=2, pretrained=pretrained)
    assert asked == [ResNet18_Weights.DEFAULT if pretrained else None]


@pytest.mark.parametrize("name", ["num_classes", "channels", "width"])
def test_small_net_numbers_out_of_range(name):
    with pytest.raises(ConfigurationError, match=f"{name}: expected a whole number ≥ 1, saw 0"):
        small_cnn(**{name: 0})


@pytest.mark.parametrize("size", [0, 2, 10])
def test_small_net_sizes_that_cannot_be_halved_twice(size):
    with pytest.raises(ConfigurationError, match=f"image_size: expected a multiple of 4 pixels, saw {size}"):
        small_cnn(image_size=size)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_dropout_out_of_range(dropout):
    with pytest.raises(ConfigurationError, match="dropout: expected a probability"):
        resnet18_classifier(num_classes=2, dropout=dropout)
    with pytest.raises(ConfigurationError, match="num_classes"):
        resnet18_classifier(num_classes=0)
