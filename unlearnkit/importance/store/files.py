"""The files of a store: a manifest, replaced atomically, and tensors, added and subtracted one at a time."""

import hashlib
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, final

import attrs
import torch
from torch import Tensor

from unlearnkit.importance.provenance import Fingerprint, coarsest_eps
from unlearnkit.models.parameters import chunk_size, chunks, extremes
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import StoreError, raise_all
from unlearnkit.utils.safetensors import load_tensors, save_tensors
from unlearnkit.utils.text import percent

FORMAT = "unlearnkit-store-1"
FILE = "manifest.json"
MOST_EDITS = 10
MOST_CHANGED = 0.05
SHARD_BYTES = 64 << 20
"""Small tensors share a file of about this size; a larger tensor has a file of its own."""
CANCELLED = 0.01
"""A difference whose relative rounding error is likely larger than this has no correct digits left."""
_NAME = re.compile(r"[0-9a-f]{16}\.safetensors")


@final
@attrs.frozen
class Shard:
    """One file: its name inside the folder, and a hash of all its bytes."""

    file: str = attrs.field()
    digest: str

    @file.validator
    def _check_file(self, _: object, value: str) -> None:
        # The name comes from a manifest that somebody may have edited: it must not lead out of the folder.
        if not _NAME.fullmatch(value):
            raise StoreError(f"expected a shard's name as 0123456789abcdef.safetensors, saw {value!r}")

    def check(self, folder: Path) -> None:
        """Compare the file with the hash of what was written."""
        path = folder / self.file
        if path.is_symlink():
            raise StoreError(f"{path}: expected a file, saw a symbolic link: somebody has replaced it")
        try:
            seen = file_digest(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot read it: {error}") from error
        if seen != self.digest:
            raise StoreError(
                f"{path}: expected the digest {self.digest}, saw {seen}: the file was damaged or replaced; "
                "make it again"
            )


@final
@attrs.frozen(kw_only=True)
class Entry:
    """The stored importance of one group, or of all of them."""

    shards: tuple[Shard, ...] = ()
    count: int
    samples: int
    relative_error: float | None = None


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
        changed = f"at most {percent(self.fraction)} of the weights changed"
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
        return coarsest_eps(f"{self.precision} {self.fingerprint.precision if self.fingerprint else ''}")

    @classmethod
    def read(cls, folder: Path) -> "StoreManifest":
        """Read the manifest of a store and check its digest."""
        return read_sealed(folder / FILE, cls, kind=FORMAT)

    def write(self, folder: Path) -> None:
        """Replace the manifest of a store: the moment at which a change of the store happens."""
        write_sealed(folder / FILE, self, kind=FORMAT)


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, limit: int | None = None) -> tuple[Shard, ...]:
    """Write tensors as they come; beside ``limit`` bytes, at most one of them is in memory."""
    # map, not a loop: that would keep a file's tensors alive while those of the next one are made.
    return tuple(map(partial(_write_shard, folder), _parts(tensors, limit or SHARD_BYTES)))


def read_shards(folder: Path, shards: Iterable[Shard], *, verify: bool = True) -> dict[str, Tensor]:
    """Map tensors into memory; their bytes are read when they are used."""
    found: dict[str, Tensor] = {}
    for shard in shards:
        if verify:
            shard.check(folder)
        found |= load_tensors(folder / shard.file, failure=": expected the safetensors file that was written, saw")[0]
    return found


def file_digest(path: Path) -> str:
    """Hash all bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parts(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if part and size + tensor.nbytes > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
        del tensor  # or it would stay while the next one is made
        if size >= limit:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _write_shard(folder: Path, tensors: dict[str, Tensor]) -> Shard:
    path = folder / f"{secrets.token_hex(8)}.safetensors"
    save_tensors(tensors, path, hint=": nothing was changed")
    return Shard(path.name, file_digest(path))


def on_disk(tensors: Iterable[tuple[str, Tensor]], *, within: Path | None = None) -> dict[str, Tensor]:
    """Write tensors to temporary files as they come, in a folder or in ``TMPDIR``, and return memory maps of them."""
    with tempfile.TemporaryDirectory(prefix="unlearnkit-", dir=within, ignore_cleanup_errors=True) as scratch:
        return read_shards(Path(scratch), write_shards(Path(scratch), tensors), verify=False)


@final
@attrs.frozen(kw_only=True)
class Cancellation:
    """How many ``entries`` of a parameter's difference have no correct digits, because the part was nearly all."""

    name: str
    entries: int
    of: int


def summed(parts: Sequence[Mapping[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Add importances name by name, in float64."""
    for name in parts[0]:
        total = parts[0][name].to(torch.float64, copy=True)
        for part in parts[1:]:
            total += part[name]
        yield name, total
        del total  # or it would stay while the next one is made


def difference(
    whole: Mapping[str, Tensor], part: Mapping[str, Tensor], *, terms: int, eps: float, lost: list[Cancellation]
) -> Iterator[tuple[str, Tensor]]:
    """Subtract a part from a whole name by name, in float64; differences below 0 by rounding become 0.

    A difference d = w − p of sums of n terms is off by about √n·eps·w, and never by more than n·eps·w. Weights whose
    first error is more than `CANCELLED` of d are counted in ``lost``.

    Source: Higham and Mary 2019 (A New Approach to Probabilistic Rounding Error Analysis), theorem 3.1.
    """
    for name in whole:
        yield name, _rest(name, whole[name], part[name], terms=max(4, terms), eps=eps, lost=lost)


def _rest(name: str, whole: Tensor, part: Tensor, *, terms: int, eps: float, lost: list[Cancellation]) -> Tensor:
    """Subtract in chunks, so that no temporary is as large as the result."""
    rest = torch.empty_like(whole, dtype=torch.float64)
    top, cancelled, below = extremes(whole)[1], 0, 0.0
    for total, taken, left in chunks(whole, part, rest, limit=chunk_size(rest.device)):
        wide = total.to(torch.float64)
        torch.sub(wide, taken, out=left)
        # A gradient is off by eps of the large ones beside it, from whose sums it was made: g² then by 2·g·eps·g_top.
        allowed = (wide + 2 * (wide * top).sqrt() + eps * top).mul_(eps * terms)
        if bool((left < -allowed).any()):
            below = min(below, float(left.min()))
        cancelled += int(torch.count_nonzero((wide * (eps * terms**0.5) > CANCELLED * left.abs()) & (taken > 0)))
        left.clamp_(min=0)
    problems = [f"{name}: the part is larger than the whole by {-below:.3g}"] if below < 0 else []
    raise_all(problems, where="taking a part out of a store")
    if cancelled:
        lost.append(Cancellation(name=name, entries=cancelled, of=whole.numel()))
    return rest
