"""Importances kept on disk, by group, so that any group can be forgotten without a pass over data."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, final

import attrs
from torch import nn

from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Role
from unlearnkit.importance.store.algebra import Cancellation, difference
from unlearnkit.importance.store.manifest import Edit, Entry, StoreManifest, read_manifest, write_manifest
from unlearnkit.importance.store.reading import check_kind, entry_of, importance_of, rounding, stable, sum_of
from unlearnkit.importance.store.shards import check_shard, read_shards
from unlearnkit.importance.store.staleness import Staleness
from unlearnkit.importance.store.writer import Writer, writing
from unlearnkit.models.parameters import digest
from unlearnkit.utils.errors import MismatchError, StoreError, raise_all


@final
@attrs.frozen
class ImportanceStore:
    """A folder of safetensors files with a manifest: totals and counts for each group of samples, and their sum.

    A group is a class, a shard, a user: whatever key its samples were measured under. Forgetting a whole group then
    takes no data at all: its importance is there, and that of everything else is a sum. Tensors are memory maps and
    sums are made tensor by tensor, so a store may be larger than memory.

    One process writes at a time; readers see the store before a change or after it, and never a part. What is removed
    is not in any file of the store any more. (A file system or a backup may keep blocks of deleted files: that is
    outside what a program can promise.)

    Attributes:
        folder: Where it lies.

    Example:
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

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        data: str = "",
        precision: Literal["float32", "float64"] = "float64",
        versions: Mapping[str, str] | None = None,
    ) -> "ImportanceStore":
        """Make an empty store.

        Args:
            folder: A new folder.
            data: Digest of the training data, to be compared later.
            precision: Of the stored totals. float32 halves the size; each total is then rounded once, by at most
                6·10⁻⁸ of itself.
            versions: Of the libraries, to be recorded.

        Returns:
            The store.

        Raises:
            StoreError: There is something in the folder already, or it cannot be made.
        """
        path = Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"expected a new or empty folder for a store, saw {path} with something in it")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make the folder {path}: {error}") from error
        write_manifest(path, StoreManifest(precision=precision, data=data, versions=dict(versions or {})))
        return cls(path)

    @classmethod
    def open(cls, folder: str | Path) -> "ImportanceStore":
        """Open a store that is there.

        Args:
            folder: Where it lies.

        Returns:
            The store.
        """
        read_manifest(Path(folder))
        return cls(folder)

    @property
    def manifest(self) -> StoreManifest:
        """What the store says of itself now."""
        return read_manifest(self.folder)

    @property
    def keys(self) -> tuple[str, ...]:
        """The groups, in the order in which they were put."""
        return tuple(self.manifest.groups)

    @property
    def rounding(self) -> float:
        """The rounding error of one addition in the coarsest of the steps that made the totals."""
        return rounding(self.manifest)

    # --- reading ------------------------------------------------------------------------------------------------------

    def group(self, key: str) -> Importance:
        """Return the importance of one group, as memory maps.

        Args:
            key: Of the group.

        Returns:
            Its importance, with the role ``forget``.
        """
        return stable(self.folder, lambda m: importance_of(self.folder, m, entry_of(m, key), Role.FORGET))

    def groups(self, keys: Iterable[str]) -> Importance:
        """Return the sum over some groups.

        Args:
            keys: At least one; each counts once.

        Returns:
            Their importance, with the role ``forget``.
        """
        wanted = tuple(dict.fromkeys(keys))
        return stable(self.folder, lambda m: sum_of(self.folder, m, wanted, Role.FORGET))

    def rest(self, keys: Iterable[str]) -> Importance:
        """Return the sum over all other groups: I(D_r), with no subtraction and so no cancellation.

        Args:
            keys: Groups to leave out.

        Returns:
            The importance of the retain set.
        """
        gone = set(keys)

        def read(manifest: StoreManifest) -> Importance:
            for key in gone:
                entry_of(manifest, key)
            return sum_of(self.folder, manifest, tuple(k for k in manifest.groups if k not in gone), Role.RETAIN)

        return stable(self.folder, read)

    def total(self) -> Importance:
        """Return the importance of all groups together, as memory maps.

        Returns:
            I(D), without what was removed.

        Raises:
            StoreError: The store is empty.
        """

        def read(manifest: StoreManifest) -> Importance:
            if manifest.total is None:
                raise StoreError(f"{self.folder}: expected at least one group, saw an empty store: put one first")
            return importance_of(self.folder, manifest, manifest.total, Role.FULL)

        return stable(self.folder, read)

    def check(self, model: nn.Module, *, data: str = "") -> None:
        """Refuse a model, or data, that the store was not measured on.

        Args:
            model: The measured one, or what the recorded edits made of it.
            data: Digest of the training data; "" does not compare it.

        Raises:
            MismatchError: Naming what differs.
        """
        manifest, seen = self.manifest, digest(model)
        problems = []
        if manifest.models and manifest.models[-1] != seen:
            older = ", an older state: edits were made since" if seen in manifest.models else ""
            problems.append(f"model: expected the digest {manifest.models[-1]}, saw {seen}{older}")
        if data and manifest.data and data != manifest.data:
            problems.append(f"data: expected the digest {manifest.data}, saw {data}")
        raise_all(problems, where=f"the store {self.folder} does not fit")

    def staleness(self) -> Staleness:
        """Say how much the model was edited since the importances were measured.

        Returns:
            Number of edits, and the sum of their fractions.
        """
        return Staleness.of(self.manifest.edits)

    def verify(self) -> None:
        """Read every file of the store and compare its hash.

        Raises:
            StoreError: A file is missing or has other bytes.
        """
        manifest = self.manifest
        for entry in [*manifest.groups.values(), *([manifest.total] if manifest.total else [])]:
            for shard in entry.shards:
                check_shard(self.folder, shard)

    # --- writing ------------------------------------------------------------------------------------------------------

    def put(self, key: str, importance: Importance) -> None:
        """Add a group.

        Args:
            key: A new one.
            importance: Of its samples, one term per sample; of the kind of those that are there.

        Raises:
            StoreError: There is such a group already.
            MismatchError: It cannot be added to what is there.
        """
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if key in manifest.groups:
                raise StoreError(f"{self.folder} has a group {key!r} already: remove it first")
            check_kind(self.folder, manifest, importance)
            entry = writer.write(importance.totals.items(), Entry.of(importance))
            fingerprint = manifest.fingerprint or importance.fingerprint
            writer.commit({**manifest.groups, key: entry}, added=entry, fingerprint=fingerprint)

    def remove(self, keys: Iterable[str]) -> None:
        """Forget groups: afterwards no file of the store contains them, and the total is the sum of the others.

        Args:
            keys: Of the groups.
        """
        self.change(remove=keys)

    def take_out(self, key: str, part: Importance) -> tuple[Cancellation, ...]:
        """Remove the importance of some samples of a group: I(G) − I(part), in float64.

        Args:
            key: The group that the samples are in.
            part: Their importance, measured on the same model.

        Returns:
            For each parameter, how many weights have lost their digits to cancellation; empty in the usual case.
        """
        return self.change(parts={key: part})

    def record_edit(self, edit: Edit) -> Staleness:
        """Note that the model was edited: the importances are those of an older model now.

        Args:
            edit: Its ``before`` must be the model that the store fits.

        Returns:
            How stale the importances are.
        """
        self.change(edit=edit)
        return self.staleness()

    def change(
        self, *, remove: Iterable[str] = (), parts: Mapping[str, Importance] | None = None, edit: Edit | None = None
    ) -> tuple[Cancellation, ...]:
        """Remove groups, take parts out of others and record an edit, all at once or not at all.

        Args:
            remove: Groups to forget whole.
            parts: Group to the importance of some of its samples.
            edit: What was done to the model.

        Returns:
            As `take_out`.

        Raises:
            MismatchError: A part is of another kind or no part of its group; the edit was made to another model.
        """
        gone, lost = set(remove), list[Cancellation]()
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if edit and manifest.models and manifest.models[-1] != edit.before:
                raise MismatchError(
                    f"the store {self.folder} fits the model {manifest.models[-1]}, saw an edit of {edit.before}"
                )
            left = {key: self._without(writer, key, part, lost) for key, part in (parts or {}).items()}
            for key in gone:
                entry_of(manifest, key)
            groups = {key: left.get(key, entry) for key, entry in manifest.groups.items() if key not in gone}
            writer.commit(groups, edits=(*manifest.edits, edit) if edit else manifest.edits)
        return tuple(lost)

    def _without(self, writer: Writer, key: str, part: Importance, lost: list[Cancellation]) -> Entry:
        manifest = writer.manifest
        entry = entry_of(manifest, key)
        check_kind(self.folder, manifest, part)
        if part.count >= entry.count:
            raise MismatchError(
                f"{key!r}: expected a part of its {entry.count} terms, saw {part.count}: remove the group instead"
            )
        whole = read_shards(self.folder, entry.shards)
        rest = difference(whole, part.totals, terms=entry.count, eps=rounding(manifest), lost=lost)
        return writer.write(rest, entry.without(part))

    def forget_edits_after(self, model: str) -> None:
        """Note that edits were rolled back.

        Args:
            model: Digest of the model that is in use again.

        Raises:
            MismatchError: The store knows no such model.
        """
        with writing(self.folder) as writer:
            manifest = writer.manifest
            if model not in manifest.models:
                raise MismatchError(f"the store {self.folder} knows no model {model}: saw {manifest.models}")
            kept = manifest.edits[: manifest.models.index(model)]
            write_manifest(self.folder, attrs.evolve(manifest, edits=kept))
