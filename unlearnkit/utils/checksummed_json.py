"""attrs values as JSON with a kind and a digest, so that any changed byte is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import cattrs

from unlearnkit.utils.errors import StoreError, UnlearnKitError
from unlearnkit.utils.files import atomic_write

T = TypeVar("T")
_CONVERTER = cattrs.Converter()


def seal(value: Any, *, kind: str) -> str:
    """Serialise a value to canonical JSON with its kind and digest."""
    return _dump({"kind": kind, "digest": seal_digest(value), "content": _CONVERTER.unstructure(value)})


def seal_digest(value: Any) -> str:
    """Hash a value."""
    return hashlib.blake2b(_dump(_CONVERTER.unstructure(value)).encode(), digest_size=32).hexdigest()


def write_sealed(path: Path, value: Any, *, kind: str) -> None:
    """Write a sealed value to a file, atomically."""
    with atomic_write(path) as temporary:
        try:
            temporary.write_bytes(seal(value, kind=kind).encode())
        except (OSError, ValueError) as error:  # ValueError: NaN, or text that is not Unicode
            raise StoreError(f"cannot write {path}: {error}: what was there is unchanged") from error


def read_sealed(path: Path, cls: type[T], *, kind: str) -> T:
    """Read a sealed file, and check every byte of it."""
    if path.is_symlink() or not path.is_file():
        raise StoreError(f"{path}: expected a file ({kind}), saw {'a link' if path.is_symlink() else 'none'}")
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot read it: {error}") from error
    try:
        raw = json.loads(text)
        seen = raw["kind"]
        value = _CONVERTER.structure(raw["content"], cls) if seen == kind else None
        whole = value is not None and seal(value, kind=kind) == text
    except (ValueError, TypeError, KeyError, RecursionError, UnlearnKitError, cattrs.BaseValidationError) as error:
        raise StoreError(f"{path} is damaged: expected {kind}, saw {_leaves(error)}") from error
    if value is None:
        raise StoreError(f"{path}: expected {kind}, saw {str(seen)[:80]!r}: another file, or one of another version")
    if not whole:
        raise StoreError(f"{path}: expected the digest of what was written, saw another: the file was changed")
    return value


def _leaves(error: BaseException) -> str:
    """Return the messages inside the exception groups of cattrs."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_leaves, error.exceptions))
    return f"{type(error).__name__}: {error}"


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
