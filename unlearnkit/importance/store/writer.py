"""The one process that changes a store: new files first, then the manifest, then the old files go."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, final

import attrs
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from unlearnkit.importance.store.algebra import summed
from unlearnkit.importance.store.manifest import Entry, StoreManifest, read_manifest, write_manifest
from unlearnkit.importance.store.shards import read_shards, write_shards
from unlearnkit.utils.errors import StoreError


@contextmanager
def writing(folder: Path) -> Iterator["Writer"]:
    """Hold the store for writing. The system lets go of it when the process ends, however it ends."""
    lock = FileLock(folder / "lock", timeout=0)
    manifest = read_manifest(folder)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"another process is writing to the store {folder}: wait until it has finished, and try again"
        ) from error
    except OSError as error:
        raise StoreError(f"cannot write to the store {folder}: {error}") from error
    try:
        manifest = read_manifest(folder)
        sweep(folder, manifest)
        yield Writer(folder=folder, manifest=manifest)
    finally:
        lock.release()


@final
@attrs.frozen(kw_only=True)
class Writer:
    """Changes a store while it is held."""

    folder: Path
    manifest: StoreManifest

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored totals."""
        return torch.float64 if self.manifest.precision == "float64" else torch.float32

    def write(self, tensors: Iterable[tuple[str, Tensor]], entry: Entry) -> Entry:
        """Write totals to new files, which nobody sees yet."""
        return attrs.evolve(entry, shards=write_shards(self.folder, map(self._narrow, tensors)))

    def _narrow(self, named: tuple[str, Tensor]) -> tuple[str, Tensor]:
        return named[0], named[1].to(self.dtype)

    def commit(self, groups: Mapping[str, Entry], *, added: Entry | None = None, **changes: Any) -> None:
        """Make the total, put the manifest in place, and delete what it does not refer to any more."""
        known = self.manifest.total
        if groups != self.manifest.groups:
            known = self._total([known, added] if known and added else list(groups.values()))
        manifest = attrs.evolve(self.manifest, groups=dict(groups), total=known, **changes)
        write_manifest(self.folder, manifest)
        sweep(self.folder, manifest)

    def _total(self, parts: list[Entry]) -> Entry | None:
        if len(parts) < 2:
            return parts[0] if parts else None
        read = [read_shards(self.folder, part.shards) for part in parts]
        return self.write(summed(read, torch.float64), Entry.together(parts))


def sweep(folder: Path, manifest: StoreManifest) -> None:
    """Delete files that a manifest does not refer to: what was removed, or left by a writer that was killed."""
    for path in folder.iterdir():
        if path.name not in manifest.files and path.suffix in {".safetensors", ".tmp"}:
            with suppress(OSError):  # a reader on Windows holds it open: the next writer gets it
                path.unlink()
