"""Importances on disk by group, so that any group can be forgotten without a pass over data."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import attrs
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from unlearnkit.distributed.sharded_tensors import refuse_sharded
from unlearnkit.importance.importance import Importance, counts_of_difference, counts_of_sum
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.store.files import (
    Cancellation,
    Edit,
    Entry,
    Staleness,
    StoreManifest,
    difference,
    on_disk,
    read_shards,
    summed,
    write_shards,
)
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import MismatchError, StoreError, nearest, raise_all
from unlearnkit.utils.options import name_set, several

T = TypeVar("T")
_TRIES = 5


@final
@attrs.frozen
class ImportanceStore:
    """A folder of safetensors files with a manifest: totals and counts for each group of samples, and their sum.

    A group is a class, a user or any other key under which samples are measured. Forgetting a whole group takes no
    data: its importance is stored, and that of all others is a sum. Tensors are memory maps and sums are made tensor by
    tensor, so a store may be larger than memory.

    One process writes at a time; readers see the store before a change or after it. What is removed is in no file of
    the store any more. (A file system or a backup may keep blocks of deleted files, which no program can prevent.)

    Examples:
        >>> import tempfile, torch
        >>> from unlearnkit.importance.provenance import Fingerprint
        >>> store = ImportanceStore.create(Path(tempfile.mkdtemp()) / "importances")
        >>> kind = Fingerprint(estimator="diagonal-fisher", unit="sample")
        >>> for key, value in {"cat": 1.0, "dog": 4.0}.items():
        ...     totals = {"w": torch.tensor([value])}
        ...     store.put(key, Importance(totals=totals, count=2, samples=2, fingerprint=kind))
        >>> store.total()
        Importance(1 tensors, 1 weights, count=4, samples=4, role=full)
        >>> store.rest(["cat"]).totals["w"]
        tensor([4.], dtype=torch.float64)
    """

    folder: Path = attrs.field(converter=Path)
    scratch: Path | None = attrs.field(default=None, kw_only=True)
    """Folder for temporary files of sums; None is ``TMPDIR``."""

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        data: str = "",
        precision: Literal["float32", "float64"] = "float64",
        versions: Mapping[str, str] | None = None,
    ) -> "ImportanceStore":
        """Create an empty store in a new folder; a `StoreError` for one with something in it.

        ``data`` is a digest of the training data, for `check`. The totals in float32 take half the size, each rounded
        once, by at most 6·10⁻⁸; that of all groups is rounded again with each `put`. ``versions`` of libraries are
        recorded.
        """
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"expected a new or empty folder for a store, saw {path} with something in it")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error}") from error
        StoreManifest(precision=precision, data=data, versions=dict(versions or {})).write(path)
        return cls(path)

    @classmethod
    def open(cls, folder: str | Path) -> "ImportanceStore":
        """Open an existing store."""
        StoreManifest.read(Path(folder))
        return cls(folder)

    @property
    def manifest(self) -> StoreManifest:
        """The manifest as it is now."""
        return StoreManifest.read(self.folder)

    @property
    def keys(self) -> tuple[str, ...]:
        """The groups, in alphabetical order."""
        return tuple(self.manifest.groups)

    @property
    def rounding(self) -> float:
        """The relative rounding error of one addition, in the coarsest precision that made the totals."""
        return self.manifest.rounding

    def group(self, key: str) -> Importance:
        """Return the importance of one group, as memory maps, with the role ``forget``."""
        return self.groups([key])

    def groups(self, keys: Iterable[str]) -> Importance:
        """Return the sum over at least one group, with the role ``forget``; each counts once."""
        wanted = several(keys)
        return self._read(lambda m: self._sum(m, wanted, Role.FORGET))

    def rest(self, keys: Iterable[str]) -> Importance:
        """Return the sum over all other groups: I(D_r), without a subtraction and so without cancellation."""
        left_out = name_set(keys)

        def read(manifest: StoreManifest) -> Importance:
            for key in left_out:
                _entry(manifest, key)
            return self._sum(manifest, tuple(k for k in manifest.groups if k not in left_out), Role.RETAIN)

        return self._read(read)

    def total(self) -> Importance:
        """Return the importance of all groups together, I(D), as memory maps."""
        return self._read(lambda m: self._importance(m, m.total, Role.FULL))

    def check(self, model: nn.Module, *, data: str = "") -> None:
        """Raise a `MismatchError` for another model, edited as recorded, or data of another digest (unless "")."""
        manifest, seen = self.manifest, digest(model)
        problems = []
        if manifest.models and manifest.models[-1] != seen:
            older = ", an older state: edits were made since" if seen in manifest.models else ""
            problems.append(f"model: expected the digest {manifest.models[-1]}, saw {seen}{older}")
        if data and manifest.data and data != manifest.data:
            problems.append(f"data: expected the digest {manifest.data}, saw {data}")
        raise_all(problems, where=f"the store {self.folder} does not fit")

    def staleness(self) -> Staleness:
        """Return how much the model was edited since the importances were measured."""
        return Staleness.of(self.manifest.edits)

    def verify(self) -> None:
        """Compare the hash of every file; raise a `StoreError` for a missing or changed one."""
        for shard in self.manifest.shards:
            shard.check(self.folder)

    def put(self, key: str, importance: Importance) -> None:
        """Add a new group: the importance of its samples, one term per sample, of the kind of those in the store."""
        check_key(key)
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if key in manifest.groups:
                raise StoreError(f"{self.folder} has a group {key!r} already: remove it first")
            self._check_kind(manifest, importance)
            counts = {name: getattr(importance, name) for name in ("count", "samples", "relative_error")}
            entry = writer.write(importance.totals.items(), counts)
            fingerprint = manifest.fingerprint or importance.fingerprint
            writer.commit({**manifest.groups, key: entry}, added=entry, fingerprint=fingerprint)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove groups: afterwards no file contains them, and the total is the sum of the others."""
        self.change(remove=keys)

    def change(
        self, *, remove: Iterable[str] = (), parts: Mapping[str, Importance] | None = None, edit: Edit | None = None
    ) -> tuple[Cancellation, ...]:
        """Remove groups, take parts out of others (in float64) and record an edit of the model, atomically.

        ``parts`` has the importance of some samples of a group, measured on the same model. Returns for each parameter
        how many weights have no correct digits after cancellation; usually nothing. A part of another kind or of
        another group, or an edit of another model than the store fits, is a `MismatchError`.
        """
        removed, lost = name_set(remove), list[Cancellation]()
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if edit and manifest.models and manifest.models[-1] != edit.before:
                raise MismatchError(
                    f"the store {self.folder} fits the model {manifest.models[-1]}, saw an edit of {edit.before}"
                )
            left = {key: self._without(writer, key, part, lost) for key, part in (parts or {}).items()}
            for key in removed:
                _entry(manifest, key)
            groups = {key: left.get(key, entry) for key, entry in manifest.groups.items() if key not in removed}
            writer.commit(groups, edits=(*manifest.edits, edit) if edit else manifest.edits)
        return tuple(lost)

    def _read(self, read: Callable[[StoreManifest], T]) -> T:
        """Read, and read again when a writer has replaced files after the manifest was read."""
        for _ in range(_TRIES):
            manifest = self.manifest
            try:
                return read(manifest)
            except StoreError:
                if self.manifest == manifest:
                    raise
        raise StoreError(f"{self.folder} changed while it was read, {_TRIES} times: try again")

    def _importance(
        self, manifest: StoreManifest, entry: Entry | None, role: Role, totals: Mapping[str, Tensor] | None = None
    ) -> Importance:
        if entry is None or manifest.fingerprint is None:
            raise StoreError(f"{self.folder}: expected at least one group, saw an empty store: put one first")
        return Importance(
            totals=read_shards(self.folder, entry.shards) if totals is None else totals,
            count=entry.count,
            samples=entry.samples,
            role=role,
            fingerprint=attrs.evolve(manifest.fingerprint, model=manifest.models[-1]),
            relative_error=entry.relative_error,
        )

    def _sum(self, manifest: StoreManifest, keys: tuple[str, ...], role: Role) -> Importance:
        if not keys:
            raise StoreError(f"{self.folder}: expected at least one group to sum, saw none")
        entries = [_entry(manifest, key) for key in keys]
        if len(entries) == 1:
            return self._importance(manifest, entries[0], role)
        totals = on_disk(summed([read_shards(self.folder, entry.shards) for entry in entries]), within=self.scratch)
        return self._importance(manifest, Entry(**counts_of_sum(entries)), role, totals)

    def _check_kind(self, manifest: StoreManifest, importance: Importance) -> None:
        """Refuse an importance that cannot be added to the store, or subtracted from it."""
        totals = importance.totals.values()
        refuse_sharded(totals, who=str(self.folder), instead="use unlearnkit.importance.save_sharded")
        problems = []
        if importance.fingerprint.unit != "sample":
            problems.append(f"expected one term per sample, saw the unit {importance.fingerprint.unit!r}")
        if manifest.fingerprint is not None:
            problems += manifest.fingerprint.differences(importance.fingerprint)
        if manifest.total is not None:
            known = read_shards(self.folder, manifest.total.shards, verify=False)
            problems += importance.name_problems(known, shapes_only=True)
        raise_all(problems, where=f"the store {self.folder} cannot take this importance")
        importance.check_values(who=f"the importance for the store {self.folder}")

    def _without(self, writer: "Writer", key: str, part: Importance, lost: list[Cancellation]) -> Entry:
        manifest = writer.manifest
        entry = _entry(manifest, key)
        self._check_kind(manifest, part)
        if part.count >= entry.count:
            raise MismatchError(
                f"{key!r}: expected a part of its {entry.count} terms, saw {part.count}: remove the group instead"
            )
        whole = read_shards(self.folder, entry.shards)
        rest = difference(whole, part.totals, terms=entry.count, eps=manifest.rounding, lost=lost)
        return writer.write(rest, counts_of_difference(entry, part))

    def forget_edits_after(self, model: str) -> None:
        """Record that edits were rolled back, and the model of this digest is in use again."""
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if model not in manifest.models:
                raise MismatchError(f"the store {self.folder} knows no model {model}: saw {manifest.models}")
            kept = manifest.edits[: manifest.models.index(model)]
            attrs.evolve(manifest, edits=kept).write(self.folder)


@contextmanager
def writing(folder: Path) -> Iterator["Writer"]:
    """Lock the store for writing; the system releases the lock when the process ends."""
    lock = FileLock(folder / "lock", timeout=0)
    StoreManifest.read(folder)  # no lock in a folder that is no store
    try:
        lock.acquire()
    except Timeout as error:
        wait = "wait until it has finished, and try again"
        raise StoreError(f"another process is writing to the store {folder}: {wait}") from error
    except OSError as error:
        raise StoreError(f"cannot write to the store {folder}: {error}") from error
    try:
        manifest = StoreManifest.read(folder)
        _delete_unreferenced(folder, manifest)
        yield Writer(folder=folder, manifest=manifest)
    finally:
        lock.release()


@final
@attrs.frozen(kw_only=True)
class Writer:
    """Changes a locked store: writes new files, then the manifest, then deletes old files."""

    folder: Path
    manifest: StoreManifest

    def write(self, tensors: Iterable[tuple[str, Tensor]], counts: Mapping[str, Any]) -> Entry:
        """Write totals to new files; no manifest refers to them yet."""
        dtype = torch.float64 if self.manifest.precision == "float64" else torch.float32

        def narrow(named: tuple[str, Tensor]) -> tuple[str, Tensor]:
            return named[0], named[1].to(dtype)

        return Entry(shards=write_shards(self.folder, map(narrow, tensors)), **counts)

    def commit(self, groups: Mapping[str, Entry], *, added: Entry | None = None, **changes: Any) -> None:
        """Write the total and the manifest, and delete files that it does not refer to."""
        known = self.manifest.total
        if groups != self.manifest.groups:
            known = self._total([known, added] if known and added else list(groups.values()))
        manifest = attrs.evolve(self.manifest, groups=dict(groups), total=known, **changes)
        manifest.write(self.folder)
        _delete_unreferenced(self.folder, manifest)

    def _total(self, parts: list[Entry]) -> Entry | None:
        if len(parts) < 2:
            return parts[0] if parts else None
        read = [read_shards(self.folder, part.shards) for part in parts]
        return self.write(summed(read), counts_of_sum(parts))


def _delete_unreferenced(folder: Path, manifest: StoreManifest) -> None:
    """Delete files that a manifest does not refer to: removed groups, or those of a writer that was killed."""
    files = {shard.file for shard in manifest.shards}
    for path in folder.iterdir():
        if path.name not in files and path.suffix in {".safetensors", ".tmp"}:
            with suppress(OSError):  # open in a reader on Windows: the next writer deletes it
                path.unlink()


def check_key(key: object) -> None:
    """Refuse the key of a group that is no text."""
    if not isinstance(key, str):
        raise StoreError(f"expected text as the key of a group, saw {key!r}: use str(key)")


def _entry(manifest: StoreManifest, key: str) -> Entry:
    if key not in manifest.groups:
        raise StoreError(f"the store has no group {key!r}{nearest(key, manifest.groups)}")
    return manifest.groups[key]
