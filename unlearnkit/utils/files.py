"""Atomic writes of files and folders."""

import ctypes
import glob
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from unlearnkit.utils.errors import StoreError

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux
_LONGEST_TEXT = 256 << 20


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to ``path`` at the end of the block.

    A reader sees the old file or the new one, after a power cut too. An exception in the block, Ctrl-C included,
    deletes the temporary file and leaves ``path`` as it was.
    """
    target = Path(path).resolve()
    temporary, mode = _create_beside(target)
    try:
        yield temporary
        _put(temporary, target, mode)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text of at most 256 MiB, from a pipe too; a device without end is refused."""
    with Path(path).open("rb") as file:
        data = file.read(_LONGEST_TEXT + 1)
    if len(data) > _LONGEST_TEXT:
        raise StoreError(f"{path}: expected at most {_LONGEST_TEXT >> 20} MiB of text, saw more: is it the right file?")
    return data.decode("utf-8-sig")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; make its folder where it is missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {path.parent}: {error}") from error
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new empty folder, and put it in the place of ``path`` at the end of the block.

    A killed process leaves the old folder or the new one. On Linux the two are exchanged in one step; where a file
    system cannot do that, a kill between two renames may leave no folder, and the next call restores the old one.
    """
    target = Path(path)
    _clean_up(target)
    mark = secrets.token_hex(6)
    new, old = (target.with_name(f".{target.name}.{mark}.{suffix}") for suffix in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if target.exists() and not _exchange(new, target):
            target.rename(old)
        if old.exists() or not target.exists():
            new.rename(target)
        _sync_folder(target.parent)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Restore or delete what a killed `atomic_folder` left beside its target."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        made = re.fullmatch(r"[0-9a-f]+\.(old|new)", left.name.removeprefix(f".{target.name}."))
        if made and made[1] == "old" and not target.exists():
            left.rename(target)
        elif made:
            shutil.rmtree(left, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    return rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0


def is_temporary(path: Path) -> bool:
    """Say whether a killed `atomic_write` left this file."""
    return re.fullmatch(r"\.[0-9a-f]{16}\.tmp", path.name) is not None


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Hold a folder alone, by a lock file in it; it is made where it is missing, and deleted if it stays empty."""
    path = Path(folder)
    made, lock = not path.exists(), FileLock(path / ".lock", timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise StoreError(f"another process is writing to {path}: wait until it has ended, or choose another") from error
    except OSError as error:
        raise StoreError(f"cannot write to the folder {path}: {error}: choose another") from error
    try:
        yield
    finally:
        with suppress(OSError):
            (path / ".lock").unlink()  # while it is held: who waits for it finds that it is gone
        lock.release()
        if made:
            with suppress(OSError):
                path.rmdir()


def _create_beside(target: Path) -> tuple[Path, int]:
    if target.is_dir():
        raise StoreError(f"expected a file name to write to, saw the folder {target}: add a file name")
    if not target.parent.is_dir():
        raise StoreError(f"expected the folder {target.parent} to exist, to write {target.name} to it: create it first")
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(exist_ok=False)  # not tempfile: its files can be read by their owner only
        if target.exists():
            shutil.copymode(target, temporary)
        return temporary, stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise StoreError(f"cannot write to the folder {target.parent}: {error}: choose another folder") from error


def _put(temporary: Path, target: Path, mode: int) -> None:
    try:
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # the rename must not reach the disk before the bytes do
        temporary.chmod(mode)  # a writer may have made its own file under our name
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise StoreError(f"cannot finish writing {target}: {error}: the file that was there is unchanged") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows cannot open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
