"""The manifest of a store: one JSON file that is replaced atomically."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, final

import attrs
import torch

from unlearnkit.importance.provenance import Fingerprint
from unlearnkit.importance.store.shards import Shard
from unlearnkit.utils.checksummed_json import added, read_sealed, write_sealed

FORMAT = "unlearnkit-store-1"
FILE = "manifest.json"
MOST_EDITS = 10
MOST_CHANGED = 0.05


@final
@attrs.frozen(kw_only=True)
class Entry:
    """The stored importance of one group, or of all of them."""

    shards: tuple[Shard, ...] = ()
    count: int
    samples: int
    relative_error: float | None = added(default=None)


@final
@attrs.frozen(kw_only=True)
class Edit:
    """An edit of the model that happened since the importances were measured."""

    before: str
    after: str
    fraction: float
    request: str = ""


@final
@attrs.frozen(kw_only=True)
class Staleness:
    """How many edits a model had since its importances were measured, and the fraction of weights they changed."""

    edits: int
    fraction: float

    @classmethod
    def of(cls, edits: Iterable[Edit]) -> "Staleness":
        """Count edits and add their fractions."""
        fractions = [edit.fraction for edit in edits]
        return cls(edits=len(fractions), fraction=min(1.0, sum(fractions)))

    @property
    def due(self) -> bool:
        """Whether the importances should be measured again: after 10 edits, or when 5 % of the weights changed."""
        return self.edits >= MOST_EDITS or self.fraction >= MOST_CHANGED

    def sentence(self) -> str:
        """Describe it in one sentence."""
        if not self.edits:
            return "The importances are those of this model."
        old = f"The importances are {self.edits} edit{'s' * (self.edits != 1)} old"
        changed = f"at most {100 * self.fraction:.3g} % of the weights changed"
        return f"{old} ({changed}): " + ("measure them again." if self.due else "still in use.")


@final
@attrs.frozen(kw_only=True)
class StoreManifest:
    """All data of a store but the tensors."""

    precision: Literal["float32", "float64"] = "float64"
    data: str = ""  # a digest
    versions: Mapping[str, str] = attrs.field(factory=dict)
    fingerprint: Fingerprint | None = None  # until the first group is put
    groups: Mapping[str, Entry] = attrs.field(factory=dict)
    total: Entry | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Digests of the model that was measured and of what its edits made of it, in order."""
        first = (self.fingerprint.model,) if self.fingerprint else ()
        return (*first, *(edit.after for edit in self.edits))

    @property
    def shards(self) -> list[Shard]:
        """All files that the manifest refers to."""
        entries = [*self.groups.values(), *([self.total] if self.total else [])]
        return [shard for entry in entries for shard in entry.shards]

    @property
    def rounding(self) -> float:
        """The machine epsilon of the coarsest precision that made the totals."""
        # Gradients count too: those of one sample differ in their last digits with the batch that it is in.
        measured = f"{self.precision} {self.fingerprint.precision if self.fingerprint else ''}"
        coarsest = next(name for name in ("bfloat16", "float16", "float32", "float64") if name in measured)
        return torch.finfo(getattr(torch, coarsest)).eps


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Replace the manifest: the moment at which a change of the store happens."""
    write_sealed(folder / FILE, manifest, kind=FORMAT)


def read_manifest(folder: Path) -> StoreManifest:
    """Read the manifest and check its digest."""
    return read_sealed(folder / FILE, StoreManifest, kind=FORMAT)
