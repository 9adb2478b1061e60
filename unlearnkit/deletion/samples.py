"""The training samples of a ledger, known by keyed digests of their content."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import torch

from unlearnkit.data import LabelledImages
from unlearnkit.data.image_folder import ImageFiles
from unlearnkit.data.labelled import Images
from unlearnkit.utils.errors import StoreError, raise_all
from unlearnkit.utils.progress import Progress, silent

SAMPLES = "samples.json"
SAMPLES_FORMAT = "unlearnkit-samples-1"


@final
@attrs.frozen(kw_only=True)
class Samples:
    """The training samples at the start of a ledger: digests in their order then, and the names of their classes."""

    digests: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)

    @classmethod
    def of(cls, data: LabelledImages, *, key: bytes, progress: Progress = silent) -> "Samples":
        """Read all samples of a data set."""
        return cls(digests=tuple(sample_digests(data, key=key, progress=progress)), classes=dict(data.class_names))

    def check(self, now: "Samples", *, forgotten: Collection[str], where: str, name: Callable[[int], str]) -> None:
        """Refuse data with a sample that was not there at the start, or without one that is not forgotten."""
        known, seen = Counter(self.digests), Counter(now.digests)
        new = [name(row) for row, digest in enumerate(now.digests) if seen[digest] > known[digest]]
        lost = [i for i, digest in enumerate(self.digests) if digest not in forgotten and seen[digest] < known[digest]]
        problems = []
        if self.classes != now.classes:
            problems.append(
                f"expected the classes {_plain(self.classes)}, saw {_plain(now.classes)} (a class without samples "
                "needs its empty folder)"
            )
        if new:
            problems.append(f"unknown samples: {_some(new)}")
        if lost:
            problems.append(f"missing though not forgotten, by number when the ledger was started: {_some(lost)}")
        advice = "Put the data back; only forgotten samples may be deleted, and other data need a new model and ledger"
        raise_all(["; ".join(problems) + f". {advice}"] if problems else [], where=where)


def sample_digests(data: LabelledImages, *, key: bytes, progress: Progress = silent) -> Iterator[str]:
    """Hash the image of each sample as it is stored, before any transform, with its labels."""
    names = {kind: data.class_names.get(kind, ()) for kind in data.kinds}
    for index in progress(range(len(data)), "digests of the samples", len(data)):
        labels = {kind: int(data.labels[kind][index]) for kind in data.kinds}
        about = repr([(kind, names[kind][label] if names[kind] else label) for kind, label in sorted(labels.items())])
        row = index if data.rows is None else int(data.rows[index])
        state = hashlib.blake2b(f"{about}\n".encode("utf-8", "surrogateescape"), key=key, digest_size=16)
        for part in _content(data.images, row):
            state.update(part)
        yield state.hexdigest()


def _content(images: Images, row: int) -> tuple[bytes, ...]:
    if isinstance(images, ImageFiles):
        path = Path(images.paths[row])
        try:
            if not path.is_file():
                raise StoreError(f"{path}: expected an image file, saw {'a device' if path.exists() else 'none'}")
            return (path.read_bytes(),)
        except OSError as error:
            raise StoreError(f"cannot read the image {path}: {error}") from error
    image = images[row].detach().cpu().contiguous()
    return f"{image.dtype} {tuple(image.shape)}\n".encode(), image.flatten().view(torch.uint8).numpy().tobytes()


def sample_name(data: LabelledImages, index: int) -> str:
    """Return the file of a sample, or its number where it has none."""
    row = index if data.rows is None else int(data.rows[index])
    return data.images.paths[row] if isinstance(data.images, ImageFiles) else str(index)


def _some(items: Sequence[str | int], limit: int = 5) -> str:
    return ", ".join(map(str, items[:limit])) + (f" and {len(items) - limit} more" if len(items) > limit else "")


def _plain(classes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {kind: list(names) for kind, names in classes.items()}
