"""From a manifest to importances, as memory maps; and what may be added to them."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from unlearnkit.errors import StoreError, raise_all
from unlearnkit.importance import Importance
from unlearnkit.provenance import Role
from unlearnkit.shards import need_whole
from unlearnkit.store.algebra import summed
from unlearnkit.store.manifest import Entry, StoreManifest, read_manifest
from unlearnkit.store.shards import read_shards, write_shards
from unlearnkit.suggest import nearest
from unlearnkit.uncertainty import recorded

T = TypeVar("T")
_TRIES = 5
_COARSE_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def stable(folder: Path, read: Callable[[StoreManifest], T]) -> T:
    """Read, and read again when a writer has replaced the files between the manifest and them.

    Args:
        folder: Of the store.
        read: From the current manifest.

    Returns:
        What it returns.

    Raises:
        StoreError: What it raises while nobody writes, or a writer at every try.
    """
    for _ in range(_TRIES):
        manifest = read_manifest(folder)
        try:
            return read(manifest)
        except StoreError:
            if read_manifest(folder) == manifest:
                raise
    raise StoreError(f"{folder} changed while it was read, {_TRIES} times: try again")


def entry_of(manifest: StoreManifest, key: str) -> Entry:
    """Find a group.

    Args:
        manifest: Of the store.
        key: Of the group.

    Returns:
        Its entry.

    Raises:
        StoreError: There is no such group; the nearest name is given.
    """
    if key not in manifest.groups:
        raise StoreError(f"the store has no group {key!r}{nearest(key, manifest.groups)}")
    return manifest.groups[key]


def importance_of(
    folder: Path, manifest: StoreManifest, entry: Entry, role: Role, totals: Mapping[str, Tensor] | None = None
) -> Importance:
    """Make an importance of an entry.

    Args:
        folder: Of the store.
        manifest: Its manifest.
        entry: Count, samples and files.
        role: Which set it is.
        totals: Read from the entry's files when left out.

    Returns:
        The importance, of the model that the store fits now: how stale it is, is the store's to say.
    """
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
    """Add groups.

    Args:
        folder: Of the store.
        manifest: Its manifest.
        keys: Of the groups.
        role: Which set they are.

    Returns:
        The sum; a memory map too, because it may be larger than memory.

    Raises:
        StoreError: No group, or one that is not there.
    """
    if not keys:
        raise StoreError(f"{folder}: expected at least one group to sum, saw none")
    entries = [entry_of(manifest, key) for key in keys]
    if len(entries) == 1:
        return importance_of(folder, manifest, entries[0], role)
    totals = on_disk(summed([read_shards(folder, entry.shards) for entry in entries], torch.float64))
    return importance_of(folder, manifest, Entry.together(entries), role, totals)


def on_disk(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Put tensors into a temporary file as they come, and return them as memory maps of it.

    Args:
        tensors: Name and tensor; read once, one after the other.

    Returns:
        Name to tensor. The file is deleted already, and its space is free when the last of them is gone. It lies where
        the environment variable ``TMPDIR`` says: on some systems that is memory after all.
    """
    with tempfile.TemporaryDirectory(prefix="unlearnkit-", ignore_cleanup_errors=True) as scratch:
        return read_shards(Path(scratch), write_shards(Path(scratch), tensors), verify=False)


def check_kind(folder: Path, manifest: StoreManifest, importance: Importance) -> None:
    """Refuse an importance that cannot be added to a store, or taken from it.

    Args:
        folder: Of the store.
        manifest: Its manifest.
        importance: One term per sample, of the kind, names and shapes of what is there.
    """
    need_whole(importance.totals.values(), who=str(folder), instead="use unlearnkit.sharded_file.save_sharded")
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

    Args:
        manifest: Of the store.

    Returns:
        A machine epsilon.
    """
    measured = f"{manifest.precision} {manifest.fingerprint.precision if manifest.fingerprint else ''}"
    coarsest = next(dtype for dtype in _COARSE_FIRST if str(dtype).removeprefix("torch.") in measured)
    return torch.finfo(coarsest).eps
