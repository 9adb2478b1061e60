"""What a store of importances says of itself, in one JSON file that is replaced whole."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, final

import attrs
import cattrs

from unlearnkit.errors import StoreError, UnlearnKitError
from unlearnkit.files import atomic_write
from unlearnkit.provenance import Fingerprint
from unlearnkit.store.shards import Shard

FORMAT = "unlearnkit-store-1"
FILE = "manifest.json"


@final
@attrs.frozen(kw_only=True)
class Entry:
    """The stored importance of one group, or of all of them.

    Attributes:
        shards: Its files.
        count: Terms.
        samples: Samples.
    """

    shards: tuple[Shard, ...]
    count: int
    samples: int


@final
@attrs.frozen(kw_only=True)
class Edit:
    """An edit of the model that happened since the importances were measured.

    Attributes:
        before: Digest of the model before it.
        after: Digest of the model after it.
        fraction: Of the weights that changed.
        request: What asked for it.
    """

    before: str
    after: str
    fraction: float
    request: str = ""


@final
@attrs.frozen(kw_only=True)
class StoreManifest:
    """All that a store knows beside the tensors.

    Attributes:
        precision: Dtype of the stored totals.
        data: Digest of the training data, or "".
        versions: Of the libraries that measured.
        fingerprint: Kind of the importances, the model's digest included; None before the first group.
        groups: Group to entry.
        total: The sum of all groups; None before the first.
        edits: Of the model, since the importances were measured.
    """

    precision: Literal["float32", "float64"] = "float64"
    data: str = ""
    versions: Mapping[str, str] = attrs.field(factory=dict)
    fingerprint: Fingerprint | None = None
    groups: Mapping[str, Entry] = attrs.field(factory=dict)
    total: Entry | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Digests of the model that was measured and of what its edits made of it, in order."""
        first = (self.fingerprint.model,) if self.fingerprint else ()
        return (*first, *(edit.after for edit in self.edits))

    @property
    def files(self) -> frozenset[str]:
        """Names of all files that the manifest refers to."""
        entries = [*self.groups.values(), *([self.total] if self.total else [])]
        return frozenset(shard.file for entry in entries for shard in entry.shards)


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Replace the manifest: the moment at which a change of the store happens.

    Args:
        folder: Of the store.
        manifest: The new one.
    """
    body = cattrs.unstructure(manifest)
    text = json.dumps({"format": FORMAT, "digest": _digest(body), "store": body}, indent=1)
    with atomic_write(folder / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> StoreManifest:
    """Read the manifest and check it whole.

    Args:
        folder: Of the store.

    Returns:
        The manifest.

    Raises:
        StoreError: There is none, or it is damaged, or of another format.
    """
    path = folder / FILE
    if path.is_symlink() or not path.is_file():
        raise StoreError(f"expected a store of importances in {folder}, saw no file {FILE}: create the store first")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise StoreError(f"{path}: expected the format {FORMAT}, saw another: it is no store, or a newer one")
    if raw.get("digest") != _digest(raw.get("store")):
        raise StoreError(f"{path}: expected the digest of what was written, saw another: the file was changed")
    try:
        return cattrs.structure(raw["store"], StoreManifest)
    except (ValueError, TypeError, KeyError, UnlearnKitError, cattrs.BaseValidationError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def _digest(body: Any) -> str:
    return hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=16).hexdigest()
