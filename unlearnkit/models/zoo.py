"""Two image classifiers: the notebook's ResNet18, and a net small enough for a demonstration on a CPU."""

from contextlib import nullcontext
from typing import final

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

    Example:
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

    Example:
        >>> model = small_cnn(seed=0)
        >>> sum(p.numel() for p in model.parameters())
        6138
    """
    _check_positive(num_classes=num_classes, channels=channels, width=width)
    if image_size < 4 or image_size % 4:
        raise ConfigurationError(f"image_size: expected a multiple of 4 pixels, saw {image_size}")
    with nullcontext() if seed is None else private_rng(seed=seed):
        return SmallCNN(num_classes=num_classes, channels=channels, width=width, image_size=image_size)


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"{name}: expected a whole number ≥ 1, saw {size}")
