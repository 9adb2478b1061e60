"""The file format of an importance: safetensors, with everything else as JSON in its header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import cattrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import need_whole
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import DataOrder, Fingerprint
from unlearnkit.importance.relative_error import recorded
from unlearnkit.utils.errors import StoreError, UnlearnKitError
from unlearnkit.utils.safetensors import save_tensors

_FORMAT = "unlearnkit-importance-1"


def save(importance: Importance, path: str | Path) -> None:
    """Write an importance to one file; what stood there before stays until the new file is complete."""
    need_whole(importance.totals.values(), who=str(path), instead="use unlearnkit.importance.sharded_file.save_sharded")
    header = {
        "count": importance.count,
        "samples": importance.samples,
        "role": importance.role.value,
        "fingerprint": attrs.asdict(importance.fingerprint),
        "trail": {
            "sizes": {str(k): v for k, v in importance.trail.sizes.items()},
            "order": importance.trail.order,
        },
        "relative_error": importance.relative_error,
    }
    text = json.dumps(header)
    metadata = {"format": _FORMAT, "importance": text, "digest": _digest(text, importance.totals)}
    save_tensors(importance.totals, path, metadata)


def load(path: str | Path) -> Importance:
    """Read an importance and check it whole."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            totals = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safetensors has no iterator
    except (OSError, ValueError, SafetensorError) as error:  # ValueError: text that is not UTF-8
        raise StoreError(f"{path}: expected an importance file, saw: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise StoreError(
            f"{path}: expected an importance file ({_FORMAT}), saw format {metadata.get('format')!r}: "
            "a model's checkpoint is not an importance"
        )
    if metadata.get("digest") != _digest(metadata.get("importance", ""), totals):
        raise StoreError(f"{path}: expected the digest of what was written, saw another: the file is damaged")
    try:
        importance = _rebuild(json.loads(metadata["importance"]), totals)
        importance.check_values(who=str(path))
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        UnlearnKitError,
        cattrs.BaseValidationError,
    ) as error:
        raise StoreError(f"{path}: the header or the totals are damaged: {error}") from error
    return importance


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().to("cpu").contiguous()
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _rebuild(header: dict[str, Any], totals: dict[str, Any]) -> Importance:
    fingerprint = cattrs.structure(header["fingerprint"], Fingerprint)
    return Importance(
        totals=totals,
        count=header["count"],
        samples=header["samples"],
        role=header["role"],
        fingerprint=fingerprint,
        trail=DataOrder(sizes=header["trail"]["sizes"], order=header["trail"]["order"]),
        relative_error=recorded(header.get("relative_error"), fingerprint.estimator),
    )
