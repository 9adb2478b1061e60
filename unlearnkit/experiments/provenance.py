"""The run manifest: everything that two bit-identical runs on one CPU have in common."""

import datetime as dt
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearnkit.data import LabelledImages, Split
from unlearnkit.data.batches import Deferred
from unlearnkit.distributed import Ranks

_PACKAGES = ("unlearnkit", "torch", "torchvision", "numpy", "scikit-learn", "safetensors", "pluggy", "attrs", "cattrs")
_IMAGES = 64


def digest_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def data_digest(data: LabelledImages) -> str:
    """Hash a data set: all labels, and 64 evenly spaced images."""
    state = hashlib.blake2b(f"{len(data)}|{data.target}|".encode(), digest_size=16)
    for kind in data.kinds:
        state.update(kind.encode() + np.ascontiguousarray(data.labels[kind].numpy()).tobytes())
    for index in np.linspace(0, len(data) - 1, min(_IMAGES, len(data))).astype(int).tolist():
        image = data[index][0]
        stored: Tensor = image.raw if isinstance(image, Deferred) else image
        state.update(stored.contiguous().numpy().tobytes())
    return state.hexdigest()


def forget_record(split: Split) -> dict[str, Any]:
    return {
        "scenario": split.scenario,
        "samples": len(split.forget),
        "of": split.samples,
        "fraction": len(split.forget) / split.samples,
        "digest": split.digest(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide the bits."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def manifest(*, config: Mapping[str, Any], data: LabelledImages, device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "config": config,
        "data_digest": data_digest(data),
        "versions": versions(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "processes": Ranks.current().size,
        "platform": platform.platform(),
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
