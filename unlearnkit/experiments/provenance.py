"""The run manifest: everything that two bit-identical runs on one CPU have in common."""

import datetime as dt
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from unlearnkit.data import LabelledImages, Split
from unlearnkit.data.batches import Deferred
from unlearnkit.data.image_folder import ImageFiles
from unlearnkit.data.labelled import Images
from unlearnkit.distributed import Ranks
from unlearnkit.unlearning.report import plain
from unlearnkit.utils.file_digests import Digests, file_digests

_PACKAGES = ("unlearnkit", "torch", "torchvision", "numpy", "scikit-learn", "safetensors", "pluggy", "attrs", "cattrs")
_IMAGES = 64
_AT_ONCE = 4096  # images
_loaded: MutableMapping[Images, Digests] = WeakIdKeyDictionary()


def digest_of(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def data_digest(data: LabelledImages) -> str:
    """Hash a data set: all labels, the content of every image, and 64 evenly spaced ones as the model gets them."""
    state = blake3(f"{len(data)}|{data.target}|".encode())
    for kind in data.kinds:
        state.update(kind.encode() + np.ascontiguousarray(data.labels[kind].numpy()).tobytes())
    rows = torch.arange(len(data)) if data.rows is None else data.rows
    if isinstance(data.images, Tensor):
        for some in torch.split(rows, _AT_ONCE):
            _add(state, data.images[some])
    else:
        state.update(_image_digests(data.images)[rows.numpy()].tobytes())
    for index in np.linspace(0, len(data) - 1, min(_IMAGES, len(data))).astype(int).tolist():
        image = data[index][0]
        _add(state, image.finish(image.raw.unsqueeze(0)) if isinstance(image, Deferred) else image)
    return state.hexdigest(length=16)


def _image_digests(images: Images) -> Digests:
    """Hash every image that is loaded on demand: the bytes of a file, else the tensor, which is loaded once."""
    if isinstance(images, ImageFiles):
        return file_digests(images.paths)
    with suppress(TypeError, KeyError):  # not loaded before, or of a type without weak references
        return _loaded[images]
    each = (_add(blake3(), images[i]).digest(length=16) for i in range(len(images)))
    found = np.frombuffer(b"".join(each), dtype=np.uint8).reshape(-1, 16)
    with suppress(TypeError):
        _loaded[images] = found
    return found


def _add(state: blake3, image: Any) -> blake3:
    whole = torch.as_tensor(image).detach().cpu().contiguous()
    state.update(f"{whole.dtype}{tuple(whole.shape)}".encode())
    return state.update(whole.flatten().view(torch.uint8).numpy().data)


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
        "config": plain(config),
        "data_digest": data_digest(data),
        "versions": versions(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "processes": Ranks.current().size,
        "platform": platform.platform(),
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
