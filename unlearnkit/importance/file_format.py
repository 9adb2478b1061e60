"""The file of an importance: safetensors, with a JSON header in its metadata and a digest of both."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import refuse_sharded
from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.safetensors import save_tensors

_FORMAT = "unlearnkit-importance-1"


def write(path: str | Path, totals: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write totals and their header to one file, atomically."""
    refuse_sharded(totals.values(), who=str(path), instead="use unlearnkit.importance.save_sharded")
    text = json.dumps(header)
    save_tensors(totals, path, {"format": _FORMAT, "importance": text, "digest": _digest(text, totals)})


def read(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read totals and the header's JSON text, and compare their digest."""
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
    return totals, metadata.get("importance", "")


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        state.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        plain = tensor.detach().to("cpu").contiguous()
        state.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()
