"""Digests of many files; a file whose path, size and times are known is not read again."""

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_write
from unlearnkit.utils.memory import MIB

Digests = NDArray[np.uint8]
_BYTES = 16
_WORTH_KEEPING, _OPEN = 64 * MIB, MIB // 64  # smaller sets are read faster; to open a file costs as much as 16 KiB
_TICK = 2 * 10**9  # ns: a file that is changed twice within one tick of its clock has the same times
_ROW = np.dtype([("stat", np.int64, 3), ("hashed", np.int64), ("digest", np.uint8, _BYTES)])

_known: dict[str, NDArray[np.void]] = {}


def file_digests(paths: Sequence[str]) -> Digests:
    """Hash the content of files: shape (n, 16), uint8.

    Digests are kept in memory and, for large sets, in ``~/.cache/unlearnkit`` (or ``UNLEARNKIT_CACHE``). A file is read
    again when its size, modification time or status time is another. One that cannot be read is a `StoreError`.
    """
    names = [os.path.abspath(path) for path in paths]  # noqa: PTH100 - as fast as can be, for a million files
    rows = np.zeros(len(names), dtype=_ROW)
    rows["stat"] = list(map(_stat, names)) or np.zeros((0, 3))
    key = hashlib.blake2b(b"\0".join(map(os.fsencode, names)), digest_size=_BYTES).hexdigest()
    known = _known[key] if key in _known else _read(key, len(rows))
    same = (known["stat"] == rows["stat"]).all(axis=1) & (known["hashed"] > rows["stat"][:, 1:].max(axis=1) + _TICK)
    rows[same] = known[same]
    changed = np.flatnonzero(~same).tolist()
    if changed:
        rows["hashed"][changed] = time.time_ns()
        found = b"".join(_digest(names[i]) for i in changed)
        rows["digest"][changed] = np.frombuffer(found, dtype=np.uint8).reshape(-1, _BYTES)
        if rows["stat"][:, 0].sum() + _OPEN * len(rows) >= _WORTH_KEEPING:
            _write(key, rows)
    _known[key] = rows
    return np.ascontiguousarray(rows["digest"])


def _stat(name: str) -> tuple[int, int, int]:
    try:
        seen = os.stat(name)  # noqa: PTH116 - likewise
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error}") from error
    if not stat.S_ISREG(seen.st_mode):
        raise StoreError(f"{name}: expected a file, saw a folder or a device")
    return seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def _digest(name: str) -> bytes:
    try:
        with open(name, "rb") as file:  # noqa: PTH123 - likewise
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_BYTES)).digest()
    except OSError as error:
        raise StoreError(f"cannot read {name}: {error}") from error


def _file(key: str) -> Path:
    home = os.environ.get("UNLEARNKIT_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearnkit"
    return base / "file-digests" / f"{key}.npy"


def _read(key: str, count: int) -> NDArray[np.void]:
    with suppress(Exception):  # none, damaged, or no home folder: the files are read
        found = np.load(_file(key), allow_pickle=False)
        if found.dtype == _ROW and found.shape == (count,):
            return np.array(found)
    return np.zeros(count, dtype=_ROW)


def _write(key: str, rows: NDArray[np.void]) -> None:
    with suppress(OSError, RuntimeError, StoreError):  # a cache: what cannot be kept is read again
        path = _file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
