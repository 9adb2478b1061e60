"""The functions that make the model and the data of a configuration, and how both normalise images."""

import inspect
from typing import Any

import attrs

from unlearnkit.experiments.config import Config, ModelConfig
from unlearnkit.models import input_transform
from unlearnkit.utils.errors import ConfigurationError, nearest
from unlearnkit.utils.structuring import import_path

DATASETS = {
    "cifar100": "unlearnkit.data:cifar100",
    "digits": "unlearnkit.data:digits",
    "image-folder": "unlearnkit.data:image_folder",
}
"""Data sets that a configuration can name, and their factories."""
_HUB = "hf-datasets:"  # and a data set of the Hugging Face Hub, or a folder


def model_factory(model: ModelConfig) -> tuple[str, dict[str, Any]]:
    """Return the import path of the function that makes the model, and its options."""
    _either("model", model.name, model.factory)
    if model.name:
        return "unlearnkit.models:load_model", {"name": model.name, **model.options}
    return model.factory, dict(model.options)


def data_factory(config: Config) -> tuple[str, dict[str, Any]]:
    """Return the import path of the function that loads the data, and its options."""
    data, options = config.data, dict(config.data.options)
    _either("data", data.name, data.factory)
    if data.normalise:
        options = {**_of_the_model(config), **options}
    if data.name.startswith(_HUB):
        return "unlearnkit.data:hf_dataset", {"path": data.name.removeprefix(_HUB), **options}
    if data.name and data.name not in DATASETS:
        known = [*DATASETS, f"{_HUB}PATH"]
        raise ConfigurationError(f"data.name: no data set is called {data.name!r}{nearest(data.name, known)}")
    return DATASETS[data.name] if data.name else data.factory, options


def _either(section: str, name: str, factory: str) -> None:
    if bool(name) == bool(factory):
        raise ConfigurationError(
            f"{section}: expected either name or factory, saw name={name!r} and factory={factory!r}"
        )


def _of_the_model(config: Config) -> dict[str, Any]:
    found = input_transform(config.model.name) if config.model.name else None
    if found is None:
        raise ConfigurationError(
            f"data.normalise: the normalisation of {config.model.source!r} is not known: set data.options.mean and std"
        )
    own = [key for key in ("mean", "std") if key in config.data.options]
    if own:
        raise ConfigurationError(f"data.normalise: 'model' replaces data.options.{own[0]}: remove one of the two")
    return attrs.asdict(found)


def normalisation(config: Config) -> dict[str, Any]:
    """Return mean, std and image size that the weights of the model expect, and those of the data; None if unknown."""
    path, options = data_factory(config)
    takes = inspect.signature(import_path(path)).parameters
    data = {key: options.get(key, takes[key].default) for key in ("mean", "std", "image_size") if key in takes}
    model = input_transform(config.model.name) if config.model.name else None
    known = all(_numbers(data.get(key)) for key in ("mean", "std"))
    return {"model": model and attrs.asdict(model), "data": data if known else None}


def normalisation_remark(config: Config) -> str:
    """Say that the data are normalised otherwise than the weights of the model expect; empty if they are not."""
    model, data = normalisation(config).values()
    if not model or not data or not config.model.options.get("pretrained", True):
        return ""
    differ = [key for key in ("mean", "std") if not _close(model[key], data[key])]
    seen = "; ".join(f"{key}: {[*model[key]]} and {[*data[key]]}" for key in differ)
    return seen and (
        f"the weights of {config.model.name!r} expect images normalised otherwise than the data are: {seen}: "
        'set data.normalise = "model", or mean and std in data.options'
    )


def _numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) == len(other) and all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))
