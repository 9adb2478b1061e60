"""Make things that a configuration names: functions by import path, devices, methods with their options."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from unlearnkit.utils.errors import ConfigurationError
from unlearnkit.utils.suggest import nearest

T = TypeVar("T")


def import_path(path: str) -> Callable[..., Any]:
    """Import a function or class.

    Example:
        >>> import_path("unlearnkit.models:small_cnn").__name__
        'small_cnn'
    """
    module_name, sign, name = path.partition(":")
    if not sign or not module_name or not name:
        raise ConfigurationError(f"expected an import path as 'package.module:name', saw {path!r}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{path!r}: cannot import {module_name}: {error}: is it installed, or in the current folder with "
            "PYTHONPATH=. set?"
        ) from error
    if not callable(getattr(module, name, None)):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigurationError(f"{path!r}: {module_name} has no function {name!r}{nearest(name, public)}")
    found: Callable[..., Any] = getattr(module, name)
    return found


def call(function: Callable[..., T], options: Mapping[str, Any], *, where: str) -> T:
    """Call a function or class with options from a configuration."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins do not say what they take
        return function(**options)
    takes = signature.parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values()):
        unknown = [name for name in options if name not in takes]
        if unknown:
            raise ConfigurationError(f"{where}: unknown option {unknown[0]!r}{nearest(unknown[0], takes)}")
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigurationError(f"{where}: {error}") from error
    return function(**options)


def resolve_device(name: str) -> torch.device:
    """Choose a device.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', saw {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigurationError(f"device: {name!r} is not there: saw {torch.cuda.device_count()} CUDA devices")
    return device
