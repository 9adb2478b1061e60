"""Deletion requests, the queue of those that wait, and the training samples that they refer to."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import final

import attrs
import numpy as np
from numpy.typing import NDArray

from unlearnkit.data import DataBundle, LabelledImages
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import ConfigurationError, nearest, raise_all, visible

Rows = NDArray[np.int64]
KIND = "unlearnkit-request-2"
_LONGEST_NAME = 200


@final
@attrs.frozen(kw_only=True)
class Request:
    """A request to forget samples, by their digests; ``groups`` are those that it named."""

    name: str = attrs.field()
    samples: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @name.validator
    def _check_name(self, _: object, value: str) -> None:
        if not value.strip():
            raise ConfigurationError("request: expected a name, such as a ticket number (--request NAME), saw none")
        if visible(value) != value:
            raise ConfigurationError(f"request: expected a name without control characters, saw {visible(value)!r}")
        if len(value) > _LONGEST_NAME:
            raise ConfigurationError(f"request: expected a name of at most {_LONGEST_NAME} letters, saw {len(value)}")

    def __attrs_post_init__(self) -> None:
        if not self.samples and not self.groups:
            raise ConfigurationError(f"request {self.name!r}: expected samples or groups to forget, saw neither")


@final
@attrs.frozen
class Queue:
    folder: Path

    def add(self, request: Request) -> None:
        """Add a request; adding it again is allowed, another one of its name is not."""
        path = self._path(request.name)
        if path.exists() and read_sealed(path, Request, kind=KIND) != request:
            raise ConfigurationError(
                f"request {request.name!r} is waiting already, for other samples: choose another name, or take it back "
                f"with `unlearnkit forget CONFIG.toml --withdraw {request.name!r}`"
            )
        if not path.exists():
            write_sealed(path, request, kind=KIND)

    def waiting(self) -> list[Request]:
        paths = sorted(self.folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [read_sealed(path, Request, kind=KIND) for path in paths]

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self.folder / f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.json"


@final
@attrs.frozen(kw_only=True, eq=False)
class Population:
    """The training samples in groups; ``remaining`` marks those that are not forgotten."""

    bundle: DataBundle
    kind: str
    remaining: NDArray[np.bool_]

    @classmethod
    def of(cls, bundle: DataBundle, *, kind: str, forgotten: Iterable[bool]) -> "Population":
        """Group the training samples by a kind of label, the target by default."""
        labels = bundle.train.labels
        if kind and kind not in labels:
            hint = nearest(kind, labels)
            raise ConfigurationError(
                f"deletion.groups: expected one of the label kinds {[*labels]}, saw {kind!r}{hint}"
            )
        kind = kind or bundle.train.target
        names = Counter(bundle.train.class_names.get(kind, ()))
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ConfigurationError(
                f"deletion.groups: expected another name for each group of {kind!r}, saw {twice[0]!r} more than once: "
                "make the class_names of the data unique"
            )
        return cls(bundle=bundle, kind=kind, remaining=~np.fromiter(forgotten, dtype=bool))

    @property
    def groups(self) -> dict[str, Rows]:
        """Group to remaining samples, in the order of the labels; empty groups are left out."""
        labels = self.bundle.train.labels[self.kind].numpy()
        found = {self.name(g): np.flatnonzero(self.remaining & (labels == g)) for g in np.unique(labels)}
        return {name: rows for name, rows in found.items() if len(rows)}

    def name(self, label: int) -> str:
        names = self.bundle.train.class_names.get(self.kind, ())
        return names[label] if names else str(int(label))

    def asked(self, samples: Iterable[int], groups: Iterable[str], *, gone: Collection[str], where: str) -> list[int]:
        """Return the numbers of samples and of the members of groups; refuse what never existed."""
        numbers, count, labels = list(samples), len(self.remaining), self.bundle.train.labels[self.kind].numpy()
        members = {self.name(g): np.flatnonzero(labels == g).tolist() for g in np.unique(labels)}
        known = members.keys() | set(gone)
        bad = [i for i in numbers if not 0 <= i < count]
        problems = [f"expected samples between 0 and {count - 1}, saw {bad[:5]}"] if bad else []
        problems += [f"no group is called {key!r}{nearest(key, known)}" for key in groups if key not in known]
        raise_all(problems, where=where, error=ConfigurationError)
        return sorted({*numbers, *(row for key in groups for row in members.get(key, []))})

    def rows(self, wanted: Iterable[bool]) -> Rows:
        """Return the samples that are wanted and remain; at least one sample must stay."""
        rows = np.flatnonzero(np.fromiter(wanted, dtype=bool) & self.remaining)
        if len(rows) == int(self.remaining.sum()) > 0:
            raise ConfigurationError(f"the requests ask for all {len(rows)} samples that are left: some must stay")
        return rows.astype(np.int64)

    def without(self, rows: Rows) -> Rows:
        return np.setdiff1d(np.flatnonzero(self.remaining), rows)

    def whole(self, rows: Rows) -> tuple[str, ...]:
        """Return the groups that some samples empty."""
        return tuple(key for key, members in self.groups.items() if np.isin(members, rows).all())

    def splits(self, rows: Rows) -> Mapping[str, LabelledImages]:
        """Return the parts of the data that an edit is evaluated on; groups that were emptied before are in none."""
        test, emptied = self.bundle.test, set(self.whole(rows))
        left = self.groups.keys() - emptied
        names = [self.name(g) for g in test.labels[self.kind].tolist()]
        parts = {
            "retain-test": [i for i, name in enumerate(names) if name in left],
            "forget-test": [i for i, name in enumerate(names) if name in emptied],
        }
        found = {name: test.subset(some) for name, some in parts.items() if len(some)}
        return {"forget-train": self.bundle.train.subset(rows), **found}
