"""The samples that a model was trained on: who is in which group, and who is forgotten already."""

from collections.abc import Iterable, Mapping
from typing import final

import attrs
import numpy as np
from numpy.typing import NDArray

from unlearnkit.data import DataBundle, LabelledImages
from unlearnkit.deletion.queue import Request
from unlearnkit.utils.errors import ConfigurationError, nearest, raise_all

Rows = NDArray[np.int64]


@final
@attrs.frozen(kw_only=True, eq=False)
class Population:
    """Training samples in groups."""

    bundle: DataBundle
    kind: str
    here: NDArray[np.bool_]

    @classmethod
    def of(cls, bundle: DataBundle, *, kind: str, gone: Iterable[bool]) -> "Population":
        """Describe the training samples of some data."""
        labels = bundle.train.labels
        if kind and kind not in labels:
            hint = nearest(kind, labels)
            raise ConfigurationError(
                f"deletion.groups: expected one of the label kinds {[*labels]}, saw {kind!r}{hint}"
            )
        return cls(bundle=bundle, kind=kind or bundle.train.target, here=~np.fromiter(gone, dtype=bool))

    @property
    def groups(self) -> dict[str, Rows]:
        """Samples that are not forgotten by group, in the order of the labels; empty groups are left out."""
        labels = self.bundle.train.labels[self.kind].numpy()
        found = {self.name(g): np.flatnonzero(self.here & (labels == g)) for g in np.unique(labels)}
        return {name: rows for name, rows in found.items() if len(rows)}

    def name(self, label: int) -> str:
        """Return what a group is called."""
        names = self.bundle.train.class_names.get(self.kind, ())
        return names[label] if names else str(int(label))

    def check(self, request: Request) -> None:
        """Refuse a request for samples or groups that there never were."""
        count = len(self.here)
        known = {self.name(g) for g in np.unique(self.bundle.train.labels[self.kind].numpy())}
        bad = [i for i in request.samples if not 0 <= i < count]
        problems = [f"expected samples between 0 and {count - 1}, saw {bad[:5]}"] if bad else []
        problems += [f"no group is called {key!r}{nearest(key, known)}" for key in request.groups if key not in known]
        raise_all(problems, where=f"request {request.name!r}", error=ConfigurationError)

    def rows(self, requests: Iterable[Request]) -> Rows:
        """Return the samples that requests ask for and that are not forgotten yet."""
        groups = self.groups
        wanted = np.zeros_like(self.here)
        for request in requests:
            wanted[list(request.samples)] = True
            for key in request.groups:
                wanted[groups.get(key, [])] = True
        rows = np.flatnonzero(wanted & self.here)
        if len(rows) == int(self.here.sum()):
            raise ConfigurationError(f"the requests ask for all {len(rows)} samples that are left: some must stay")
        return rows.astype(np.int64)

    def without(self, rows: Rows) -> Rows:
        """Return the samples that stay when some go."""
        return np.setdiff1d(np.flatnonzero(self.here), rows)

    def whole(self, rows: Rows) -> tuple[str, ...]:
        """Return the groups of which some samples leave nothing."""
        return tuple(key for key, members in self.groups.items() if np.isin(members, rows).all())

    def splits(self, rows: Rows) -> Mapping[str, LabelledImages]:
        """Return what to judge an edit by."""
        left = {key for key, members in self.groups.items() if not np.isin(members, rows).all()}
        test = self.bundle.test
        kept = np.array([self.name(g) in left for g in test.labels[self.kind].tolist()], dtype=bool)
        parts = {
            "forget-train": self.bundle.train.subset(rows),
            "retain-test": test.subset(np.flatnonzero(kept)) if kept.any() else None,
            "forget-test": test.subset(np.flatnonzero(~kept)) if (~kept).any() else None,
        }
        return {name: part for name, part in parts.items() if part is not None}
