"""Image classifiers: the notebook's ResNet18, and two that are small enough for a CPU."""

from contextlib import nullcontext
from typing import final

import torch
from torch import Tensor, nn
from typing_extensions import override

from unlearnkit.utils.download import downloading
from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.rng import private_rng


@final
class ResNet18Classifier(nn.Module):
    """ResNet18 (He et al. 2016) whose last layer is dropout and a linear head: f(x) = W·drop(features(x)) + b."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(x))
        return logits


@final
class SmallCNN(nn.Module):
    """Two convolutions with BatchNorm and max pooling, then a linear head."""

    def __init__(self, *, num_classes: int, channels: int, width: int, image_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*_block(channels, width), *_block(width, 2 * width))
        self.head = nn.Linear(2 * width * (image_size // 4) ** 2, num_classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(1))
        return logits


@final
class RandomShiftAndFlip(nn.Module):
    """In train mode each image is shifted by up to ``pixels`` and flipped at random; in eval mode nothing is done.

    Part of the model, as dropout is, so that the images stay the same for importances and evaluation.
    """

    def __init__(self, pixels: int = 3) -> None:
        super().__init__()
        self.pixels = pixels

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n, (height, width) = len(x), x.shape[2:]
        down, right = torch.randint(2 * self.pixels + 1, (2, n, 1), device=x.device)
        flip = torch.rand(n, 1, device=x.device) < 0.5
        rows = down + torch.arange(height, device=x.device)
        columns = right + torch.arange(width, device=x.device)
        columns = torch.where(flip, columns.flip(1), columns)
        padded = nn.functional.pad(x, (self.pixels,) * 4).permute(0, 2, 3, 1)
        images = torch.arange(n, device=x.device)[:, None, None]
        return padded[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@final
class ResidualBlock(nn.Module):
    """relu(conv(relu(conv(x))) + x), with BatchNorm; x goes through a 1 × 1 convolution where its shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_normed(inputs, outputs, kernel=3, stride=stride), nn.ReLU(), *_normed(outputs, outputs, kernel=3)
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(*_normed(inputs, outputs, kernel=1, stride=stride))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


@final
class SmallResNet(nn.Module):
    """A convolution of stride 2, three residual blocks (He et al. 2016), mean pooling and a linear head."""

    def __init__(self, *, num_classes: int, channels: int, width: int, augment: bool) -> None:
        super().__init__()
        self.augment = RandomShiftAndFlip() if augment else nn.Identity()
        self.stem = nn.Sequential(*_normed(channels, width, kernel=5, stride=2), nn.ReLU())
        sizes = ((width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1))
        self.blocks = nn.Sequential(*(ResidualBlock(*size) for size in sizes))
        self.head = nn.Linear(4 * width, num_classes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(self.augment(x))).mean((2, 3)))
        return logits


def _normed(inputs: int, outputs: int, *, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


def _block(inputs: int, outputs: int) -> list[nn.Module]:
    # No bias before BatchNorm, which would subtract it again.
    convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]


def resnet18_classifier(
    *, num_classes: int, dropout: float = 0.5, pretrained: bool = False, seed: int | None = None
) -> ResNet18Classifier:
    """Make the notebook's network: about 11 million weights, for images such as 224 × 224.

    A feature is dropped before the head with probability ``dropout`` < 1, in training only. ``pretrained`` starts with
    torchvision's ImageNet weights (downloaded once, 45 MB). A seed makes the initial weights repeatable and leaves the
    global random state alone; None draws from it.

    Examples:
        >>> model = resnet18_classifier(num_classes=20, seed=0)
        >>> sum(p.numel() for p in model.parameters())
        11186772
    """
    _check_positive(num_classes=num_classes)
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"dropout: expected a probability 0 ≤ p < 1, saw {dropout}")
    from torchvision.models import ResNet18_Weights, resnet18  # noqa: PLC0415 - torchvision takes a second

    weights = ResNet18_Weights.DEFAULT if pretrained else None
    waiting = downloading("ImageNet weights (45 MB)", weights.url) if weights else nullcontext()
    with waiting, nullcontext() if seed is None else private_rng(seed=seed):
        backbone = resnet18(weights=weights)
        head = nn.Sequential(nn.Dropout(dropout), nn.Linear(backbone.fc.in_features, num_classes))
    backbone.fc = nn.Identity()
    return ResNet18Classifier(backbone, head)


def small_cnn(
    *, num_classes: int = 10, channels: int = 1, width: int = 16, image_size: int = 8, seed: int | None = None
) -> SmallCNN:
    """Make a small network for images such as the 8 × 8 digits: about 6,000 weights at its defaults.

    ``width`` is the number of channels after the first convolution: weights grow with its square. ``image_size`` in
    pixels is a multiple of 4. The seed is as in `resnet18_classifier`.

    Examples:
        >>> model = small_cnn(seed=0)
        >>> sum(p.numel() for p in model.parameters())
        6138
    """
    _check_positive(num_classes=num_classes, channels=channels, width=width)
    if image_size < 4 or image_size % 4:
        raise ConfigurationError(f"image_size: expected a multiple of 4 pixels, saw {image_size}")
    with nullcontext() if seed is None else private_rng(seed=seed):
        return SmallCNN(num_classes=num_classes, channels=channels, width=width, image_size=image_size)


def small_resnet(
    *, num_classes: int = 10, channels: int = 3, width: int = 32, augment: bool = True, seed: int | None = None
) -> SmallResNet:
    """Make a residual network for images of 32 × 32 pixels, say: about 590,000 weights, fast on a CPU.

    ``width`` is the number of channels after the first convolution. With ``augment``, images are shifted and flipped at
    random in train mode. The seed is as in `resnet18_classifier`.

    Examples:
        >>> model = small_resnet(seed=0)
        >>> sum(p.numel() for p in model.parameters())
        587050
    """
    _check_positive(num_classes=num_classes, channels=channels, width=width)
    with nullcontext() if seed is None else private_rng(seed=seed):
        return SmallResNet(num_classes=num_classes, channels=channels, width=width, augment=augment)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"{name}: expected a whole number ≥ 1, saw {size}")
