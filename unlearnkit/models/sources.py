"""Image classifiers of timm, torchvision and Hugging Face by name, and the normalisation that their weights expect."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any, final

import attrs
import torch
from torch import nn

from unlearnkit.data import DeviceTransform
from unlearnkit.utils.errors import ConfigurationError


def load_model(name: str, *, num_classes: int | None = None, pretrained: bool = True, **options: Any) -> nn.Module:
    """Make an image classifier of another library by name.

    Args:
        name: ``"timm:resnet18"``, ``"torchvision:efficientnet_b0"``, or ``"hf:"`` with a model of the Hugging Face Hub
            or a folder written by ``save_pretrained``. timm needs the extra ``timm``, Hugging Face ``transformers``.
        num_classes: Where it differs from the classes of the weights, the last layer is a new one; None keeps theirs.
        pretrained: Take the library's weights, downloaded by the library if need be; otherwise random ones.
        options: Passed on to `timm.create_model`, `torchvision.models.get_model`, or the configuration of transformers.

    Raises:
        ConfigurationError: The library is missing or cannot make this model.

    Examples:
        >>> load_model("torchvision:resnet18", num_classes=3, pretrained=False).fc
        Linear(in_features=512, out_features=3, bias=True)
    """
    with _source(name) as (source, rest):
        return source.model(rest, num_classes, pretrained, options)


def input_transform(name: str) -> DeviceTransform | None:
    """Return the normalisation and image size that the weights of `load_model` expect, None where that is unknown.

    It resizes bilinearly, which is not every library's way. Raises what `load_model` raises.

    Examples:
        >>> input_transform("torchvision:vit_b_16").image_size
        224
    """
    with _source(name) as (source, rest):
        return source.transform(rest)


def _timm_model(name: str, num_classes: int | None, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    timm: Any = import_module("timm")

    if ":" not in name and not timm.is_model(name):  # a colon: a model of the Hub or of a folder
        raise ValueError(f"there is no model {name!r}{_similar(name, timm.list_models())}")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **classes, **options)
    return model


def _timm_transform(name: str) -> DeviceTransform:
    with torch.device("meta"):  # names of the Hub have no other way to their configuration
        found = import_module("timm.data").resolve_model_data_config(_timm_model(name, None, False, {}))
    return DeviceTransform(mean=found["mean"], std=found["std"], image_size=min(found["input_size"][1:]))


def _torchvision_weights(name: str) -> Any:
    models: Any = import_module("torchvision.models")
    known = models.list_models(module=models)  # not those of segmentation, detection and video
    if name not in known:
        raise ValueError(f"there is no classifier {name!r}{_similar(name, known)}")
    return models.get_model_weights(name).DEFAULT


def _torchvision_model(name: str, num_classes: int | None, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    models, weights = import_module("torchvision.models"), _torchvision_weights(name)
    known = len(weights.meta["categories"])
    model: nn.Module = models.get_model(name, weights=weights if pretrained else None, **options)
    if num_classes not in {None, known}:
        _replace_heads(model, known, num_classes)
    return model


def _replace_heads(model: nn.Module, known: int, num_classes: int) -> None:
    """Replace the layers with one output for each class: torchvision calls them by many names."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer.out_features == known:
                setattr(parent, name, nn.Linear(layer.in_features, num_classes))
            elif isinstance(layer, nn.Conv2d) and layer.out_channels == known:
                setattr(parent, name, nn.Conv2d(layer.in_channels, num_classes, kernel_size=1))


def _torchvision_transform(name: str) -> DeviceTransform:
    found = _torchvision_weights(name).transforms()
    return DeviceTransform(mean=found.mean, std=found.std, image_size=found.crop_size[0])


def _hugging_face_model(path: str, num_classes: int | None, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    transformers: Any = import_module("transformers")
    config, unused = transformers.AutoConfig.from_pretrained(path, return_unused_kwargs=True, **options)
    if unused:
        raise TypeError(f"{type(config).__name__} has no option {min(unused)!r}")
    other = num_classes not in {None, config.num_labels}
    if other:
        config.num_labels = num_classes
    auto: Any = transformers.AutoModelForImageClassification
    model: nn.Module
    # In float32: transformers would take the dtype of the file, which may be for inference alone.
    if pretrained:
        model = auto.from_pretrained(path, config=config, ignore_mismatched_sizes=other, dtype=torch.float32)
    else:
        model = auto.from_config(config, dtype=torch.float32)
    return model


def _hugging_face_transform(path: str) -> DeviceTransform | None:
    transformers: Any = import_module("transformers")
    transformers.AutoConfig.from_pretrained(path)  # a wrong name is an error; a model without a processor is not
    try:
        found = transformers.AutoImageProcessor.from_pretrained(path)
    except OSError:
        return None
    size = found.crop_size if getattr(found, "do_center_crop", False) and found.crop_size else found.size
    sides = [side for side in (size.height, size.width, size.shortest_edge) if side]
    mean, std = (found.image_mean, found.image_std) if found.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return DeviceTransform(mean=mean, std=std, image_size=min(sides) if sides else None)


def _similar(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


@final
@attrs.frozen(kw_only=True)
class _Source:
    model: Callable[[str, int | None, bool, Mapping[str, Any]], nn.Module]
    transform: Callable[[str], DeviceTransform | None]
    install: str


_SOURCES = {
    "timm": _Source(model=_timm_model, transform=_timm_transform, install="unlearnkit[timm]"),
    "torchvision": _Source(model=_torchvision_model, transform=_torchvision_transform, install="torchvision"),
    "hf": _Source(model=_hugging_face_model, transform=_hugging_face_transform, install="unlearnkit[transformers]"),
}


@contextmanager
def _source(name: str) -> Iterator[tuple[_Source, str]]:
    """Find the source of a model and the model's name there; say what failed in one line."""
    prefix, _, rest = name.partition(":")
    if prefix not in _SOURCES or not rest:
        raise ConfigurationError(f"model.name: expected one of {', '.join(map('{}:…'.format, _SOURCES))}, saw {name!r}")
    source = _SOURCES[prefix]
    try:
        yield source, rest
    except ImportError as error:
        raise ConfigurationError(
            f"model.name {name!r}: cannot import its library: {error}: pip install '{source.install}'"
        ) from error
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ConfigurationError(f"model.name {name!r}: {said or type(error).__name__}") from error
