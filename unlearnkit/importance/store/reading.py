"""From a manifest to importances, as memory maps; and what may be added to them."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from unlearnkit.distributed.sharded_tensors import need_whole
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.relative_error import recorded
from unlearnkit.importance.store.algebra import summed
from unlearnkit.importance.store.manifest import Entry, StoreManifest, read_manifest
from unlearnkit.importance.store.shards import read_shards, write_shards
from unlearnkit.utils.errors import StoreError, raise_all
from unlearnkit.utils.suggest import nearest

T = TypeVar("T")
_TRIES = 5
_COARSE_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def stable(folder: Path, read: Callable[[StoreManifest], T]) -> T:
    """Read, and read again when a writer has replaced the files between the manifest and them."""
    for _ in range(_TRIES):
        manifest = read_manifest(folder)
        try:
            return read(manifest)
        except StoreError:
            if read_manifest(folder) == manifest:
                raise
    raise StoreError(f"{folder} changed while it was read, {_TRIES} times: try again")


def entry_of(manifest: StoreManifest, key: str) -> Entry:
    """Find a group."""
    if key not in manifest.groups:
        raise StoreError(f"the store has no group {key!r}{nearest(key, manifest.groups)}")
    return manifest.groups[key]


def importance_of(
    folder: Path, manifest: StoreManifest, entry: Entry, role: Role, totals: Mapping[str, Tensor] | None = None
) -> Importance:
    """Make an importance of an entry."""
    assert manifest.fingerprint is not None, "a store with an entry has a fingerprint"
    return Importance(
        totals=read_shards(folder, entry.shards) if totals is None else totals,
        count=entry.count,
        samples=entry.samples,
        role=role,
        fingerprint=attrs.evolve(manifest.fingerprint, model=manifest.models[-1]),
        relative_error=recorded(entry.relative_error, manifest.fingerprint.estimator),
    )


def sum_of(folder: Path, manifest: StoreManifest, keys: tuple[str, ...], role: Role) -> Importance:
    """Add groups."""
    if not keys:
        raise StoreError(f"{folder}: expected at least one group to sum, saw none")
    entries = [entry_of(manifest, key) for key in keys]
    if len(entries) == 1:
        return importance_of(folder, manifest, entries[0], role)
    totals = on_disk(summed([read_shards(folder, entry.shards) for entry in entries], torch.float64))
    return importance_of(folder, manifest, Entry.together(entries), role, totals)


def on_disk(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Put tensors into a temporary file as they come, and return them as memory maps of it."""
    with tempfile.TemporaryDirectory(prefix="unlearnkit-", ignore_cleanup_errors=True) as scratch:
        return read_shards(Path(scratch), write_shards(Path(scratch), tensors), verify=False)


def check_kind(folder: Path, manifest: StoreManifest, importance: Importance) -> None:
    """Refuse an importance that cannot be added to a store, or taken from it."""
    need_whole(
        importance.totals.values(), who=str(folder), instead="use unlearnkit.importance.sharded_file.save_sharded"
    )
    problems = []
    if importance.fingerprint.unit != "sample":
        problems.append(f"expected one term per sample, saw the unit {importance.fingerprint.unit!r}")
    if manifest.fingerprint is not None:
        problems += manifest.fingerprint.differences(importance.fingerprint)
    if manifest.total is not None:
        known = read_shards(folder, manifest.total.shards, verify=False)
        problems += importance.name_problems(known, shapes_only=True)
    raise_all(problems, where=f"the store {folder} cannot take this importance")
    importance.check_values(who=f"the importance for the store {folder}")


def rounding(manifest: StoreManifest) -> float:
    """Return the rounding error of one step in the coarsest of the precisions that made the totals.

    Gradients count too: those of one sample differ in their last digits with the batch that it is measured in.
    """
    measured = f"{manifest.precision} {manifest.fingerprint.precision if manifest.fingerprint else ''}"
    coarsest = next(dtype for dtype in _COARSE_FIRST if str(dtype).removeprefix("torch.") in measured)
    return torch.finfo(coarsest).eps
