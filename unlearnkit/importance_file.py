"""The file format of an importance: safetensors, with everything else as JSON in its header."""

import json
from pathlib import Path
from typing import Any

import attrs
import cattrs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unlearnkit.errors import StoreError, UnlearnKitError
from unlearnkit.files import atomic_write
from unlearnkit.importance import Importance
from unlearnkit.provenance import BatchTrail, Fingerprint

_FORMAT = "unlearnkit-importance-1"


def save(importance: Importance, path: str | Path) -> None:
    """Write an importance to one file; what stood there before stays until the new file is complete.

    Args:
        importance: What to write.
        path: Where to.
    """
    header = {
        "count": importance.count,
        "samples": importance.samples,
        "role": importance.role.value,
        "fingerprint": attrs.asdict(importance.fingerprint),
        "trail": {
            "sizes": {str(k): v for k, v in importance.trail.sizes.items()},
            "order": importance.trail.order,
        },
    }
    tensors = {name: total.contiguous() for name, total in importance.totals.items()}
    with atomic_write(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"format": _FORMAT, "importance": json.dumps(header)})


def load(path: str | Path) -> Importance:
    """Read an importance and check it whole.

    Args:
        path: A file written by `save`.

    Returns:
        The importance, on the CPU.

    Raises:
        StoreError: No such file, not such a file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            totals = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safetensors has no iterator
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: expected an importance file, saw: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise StoreError(
            f"{path}: expected an importance file ({_FORMAT}), saw format {metadata.get('format')!r}: "
            "a model's checkpoint is not an importance"
        )
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


def _rebuild(header: dict[str, Any], totals: dict[str, Any]) -> Importance:
    return Importance(
        totals=totals,
        count=header["count"],
        samples=header["samples"],
        role=header["role"],
        fingerprint=cattrs.structure(header["fingerprint"], Fingerprint),
        trail=BatchTrail(sizes=header["trail"]["sizes"], order=header["trail"]["order"]),
    )
