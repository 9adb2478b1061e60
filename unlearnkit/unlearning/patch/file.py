"""A patch in one safetensors file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearnkit.models.parameters import digest_tensors
from unlearnkit.unlearning.patch.edit import Patch
from unlearnkit.unlearning.patch.tensor import TensorPatch
from unlearnkit.utils.errors import StoreError, raise_all
from unlearnkit.utils.safetensors import save_tensors

FORMAT = "unlearnkit-patch-1"
_PARTS = ("index", "factor", "value_index", "value", "old")


def save(patch: Patch, path: str | Path) -> None:
    """Write one safetensors file, atomically."""
    tensors = {
        f"{part}/{name}": getattr(one, part)
        for name, one in patch.tensors.items()
        for part in _PARTS
        if getattr(one, part) is not None
    }
    header = json.dumps({"before": patch.before, "after": patch.after, "about": dict(patch.about)})
    metadata = {"format": FORMAT, "patch": header, "digest": _seal(header, tensors)}
    save_tensors(tensors, path, metadata)


def load(path: str | Path) -> Patch:
    """Read what `save` wrote, and check it whole."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise StoreError(f"{path}: expected a patch ({FORMAT}), saw format {metadata.get('format')!r}")
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        if metadata.get("digest") != _seal(metadata.get("patch", ""), tensors):
            raise StoreError(f"{path}: expected the digest of what was written, saw another: the patch was changed")
        return _rebuilt(json.loads(metadata["patch"]), tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise StoreError(f"{path}: expected a patch, saw: {error}") from error


def _seal(header: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.blake2b(f"{header}|{digest_tensors(tensors)}".encode(), digest_size=16).hexdigest()


def _rebuilt(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> Patch:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(name, {})[part] = tensor
    found = {name: TensorPatch(**part) for name, part in parts.items()}
    problems = [problem for name, patch in found.items() for problem in patch.malformed(name)]
    raise_all(problems, where="the patch", error=StoreError)
    return Patch(tensors=found, before=str(header["before"]), after=str(header["after"]), about=dict(header["about"]))
