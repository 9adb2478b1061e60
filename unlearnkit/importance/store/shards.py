"""Named tensors in a folder of safetensors files, written and read one file at a time."""

import hashlib
import re
import secrets
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import final

import attrs
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.safetensors import save_tensors

SHARD_BYTES = 64 << 20
"""Small tensors share a file of about this size; a larger tensor has a file of its own."""

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


def write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, limit: int | None = None) -> tuple[Shard, ...]:
    """Write tensors as they come: besides ``limit`` bytes, no more than one of them is in memory."""
    # Not a loop: it would hold a file's tensors while those of the next one are made.
    return tuple(map(partial(_write_shard, folder), _parts(tensors, limit or SHARD_BYTES)))


def read_shards(folder: Path, shards: Iterable[Shard], *, verify: bool = True) -> dict[str, Tensor]:
    """Open tensors as memory maps: their bytes are read from the files when they are used."""
    found: dict[str, Tensor] = {}
    for shard in shards:
        path = folder / shard.file
        if verify:
            check_shard(folder, shard)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                found.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise StoreError(f"{path}: expected the safetensors file that was written there, saw: {error}") from error
    return found


def check_shard(folder: Path, shard: Shard) -> None:
    """Compare a file with the hash of what was written."""
    path = folder / shard.file
    if path.is_symlink():
        raise StoreError(f"{path}: expected a file, saw a symbolic link: somebody has replaced it")
    try:
        seen = file_digest(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot read it: {error}") from error
    if seen != shard.digest:
        raise StoreError(
            f"{path}: expected the digest {shard.digest}, saw {seen}: the file was damaged or replaced; make it again"
        )


def file_digest(path: Path) -> str:
    """Hash all bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _parts(tensors: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        new = tensor.numel() * tensor.element_size()
        if part and size + new > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += new
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
