"""Requests that wait until they are dealt with, one file each."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import final

import attrs

from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import ConfigurationError

KIND = "unlearnkit-request-1"


@final
@attrs.frozen(kw_only=True)
class Request:
    """A wish to be forgotten. It holds numbers of samples in the clear, and is deleted when it is dealt with.

    Attributes:
        name: What it is called: a ticket number, say.
        samples: Numbers of training samples.
        groups: Groups to forget whole.
    """

    name: str
    samples: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if not self.name.strip():
            raise ConfigurationError("request: expected a name, saw none")
        if not self.samples and not self.groups:
            raise ConfigurationError(f"request {self.name!r}: expected samples or groups to forget, saw neither")


@final
@attrs.frozen
class Queue:
    """A folder of waiting requests."""

    folder: Path

    def add(self, request: Request) -> None:
        """Put a request at the end."""
        path = self.folder / _file(request.name)
        if path.exists():
            raise ConfigurationError(f"request {request.name!r} is waiting already: a request is asked for once")
        write_sealed(path, request, kind=KIND)

    def waiting(self) -> list[Request]:
        """Read all requests."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [read_sealed(path, Request, kind=KIND) for path in paths]

    def drop(self, names: Iterable[str]) -> None:
        """Delete requests that are dealt with."""
        for name in names:
            with suppress(FileNotFoundError):
                (self.folder / _file(name)).unlink()


def _file(name: str) -> str:
    return f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.json"
