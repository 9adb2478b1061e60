"""Sharded importances in a folder: safetensors written by `torch.distributed.checkpoint`, one file for each process.

Any number of processes can read what any number have written.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

import attrs
import torch
from blake3 import blake3
from torch import Tensor, nn

from unlearnkit.distributed.collectives import Ranks, all_gather, barrier, gather_problems
from unlearnkit.distributed.sharded_tensors import local, reshard, shard_like
from unlearnkit.importance.importance import Importance
from unlearnkit.importance.provenance import Fingerprint
from unlearnkit.models.parameters import trainable
from unlearnkit.utils.checksummed_json import read_sealed, write_sealed
from unlearnkit.utils.errors import StoreError, UnlearnKitError, raise_all
from unlearnkit.utils.files import atomic_folder

FORMAT = "unlearnkit-sharded-importance-1"
FILE = "importance.json"
_NAME = re.compile(r"[\w-]+\.safetensors")


@final
@attrs.frozen(kw_only=True)
class _Tensor:
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, total: Tensor) -> "_Tensor":
        return cls(shape=tuple(total.shape), dtype=str(total.dtype).removeprefix("torch."))

    def empty(self, pattern: Tensor | None) -> Tensor:
        """Allocate it: sharded as the pattern is, or on the CPU."""
        dtype = {"float32": torch.float32, "float64": torch.float64}[self.dtype]
        if pattern is None:
            return torch.empty(self.shape, dtype=dtype)
        shard = torch.empty_like(local(pattern), dtype=dtype, memory_format=torch.contiguous_format)
        return shard_like(shard, pattern)


@final
@attrs.frozen(kw_only=True)
class _Saved:
    """Everything but the tensors; ``files`` is name to digest."""

    count: int
    samples: int
    role: str
    fingerprint: Fingerprint
    sizes: Mapping[int, int]
    order: str
    tensors: Mapping[str, _Tensor]
    files: Mapping[str, str] = attrs.field(factory=dict)
    relative_error: float | None = None

    @classmethod
    def of(cls, importance: Importance) -> "_Saved":
        tensors = {name: _Tensor.of(total) for name, total in importance.totals.items()}
        header = importance.header()
        trail = header.pop("trail")
        return cls(**header, **trail, tensors=tensors)

    def importance(self, totals: Mapping[str, Tensor]) -> Importance:
        header = {**attrs.asdict(self, recurse=False), "trail": {"sizes": self.sizes, "order": self.order}}
        return Importance.of_header(header, totals)


def save_sharded(importance: Importance, folder: str | Path) -> None:
    """Write an importance, each process its shards; an existing folder is replaced only when the new one is complete.

    All processes must call this, with a folder in a file system that they share. An importance that is not sharded can
    be written by a single process. A `StoreError` in one process is raised in all.
    """
    ranks = Ranks.current()
    with _new_folder(Path(folder)) as new:
        with _raise_on_all_ranks(f"cannot write {folder}"):
            from torch.distributed.checkpoint import state_dict_saver as saver  # noqa: PLC0415 - a slow import
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: PLC0415

            writer = HuggingFaceStorageWriter(str(new), save_distributed=True)
            saver.save(dict(importance.totals), storage_writer=writer, no_dist=ranks.size == 1)
        with _raise_on_all_ranks(f"cannot read what was written to {folder}"):
            names = sorted(p.name for p in new.iterdir())
            mine = {name: _digest(new / name) for name in ranks.share(names)}
        files = {name: digest for part in all_gather(mine) for name, digest in part.items()}
        with _raise_on_all_ranks(f"cannot write {folder}"):
            if ranks.rank == 0:
                write_sealed(new / FILE, attrs.evolve(_Saved.of(importance), files=files), kind=FORMAT)


def load_sharded(folder: str | Path, model: nn.Module | None = None) -> Importance:
    """Read what `save_sharded` wrote with any number of processes, all of which must call this; check every file.

    The importance is sharded as the parameters of the model are: another model is a `MismatchError`. Without a model it
    is whole, on the CPU, in every process. A folder that is missing or damaged is a `StoreError`.
    """
    path = Path(folder)
    if model is not None:
        reshard(model)
    patterns = None if model is None else trainable(model)
    with _raise_on_all_ranks(str(path)):
        saved = read_sealed(path / FILE, _Saved, kind=FORMAT)
        _check_files(path, saved.files)
    if patterns is not None:
        _check_fits(saved, patterns, where=str(path))
    with _raise_on_all_ranks(f"{path} is damaged"):
        from torch.distributed.checkpoint import state_dict_loader as loader  # noqa: PLC0415 - a slow import
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # noqa: PLC0415

        totals = {name: t.empty(patterns[name] if patterns else None) for name, t in saved.tensors.items()}
        alone = model is None or Ranks.current().size == 1
        loader.load(totals, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)
        importance = saved.importance(totals)
    try:
        importance.check_values(who=str(path))
    except UnlearnKitError as error:
        raise StoreError(f"{path}: the totals are damaged: {error}") from error
    return importance


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to all ranks; rank 0 makes it, and puts it in place at the end."""
    with ExitStack() as stack:
        made, problem = "", None
        if Ranks.current().rank == 0:
            try:
                made = str(stack.enter_context(atomic_folder(folder)))
            except OSError as error:
                problem = StoreError(f"cannot write {folder}: {error}")
        yield Path(all_gather(made, error=problem)[0])
    barrier()  # no process may read the folder before rank 0 has put it in place


@contextmanager
def _raise_on_all_ranks(where: str) -> Iterator[None]:
    """Raise on all ranks, as a `StoreError`, what goes wrong on any."""
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415 - a slow import

    problems = []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except StoreError as error:
        problems = [str(error)]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        problems = [f"{type(error).__name__}: {error}"]
    except CheckpointException as error:
        problems = [f"{type(e).__name__}: {e}" for e, _ in error.failures.values()]
    raise_all(gather_problems(problems), where=where, error=StoreError)


def _check_fits(saved: _Saved, patterns: Mapping[str, Tensor], *, where: str) -> None:
    problems = [f"{name}: expected, but missing" for name in patterns if name not in saved.tensors]
    problems += [f"{name}: not expected" for name in saved.tensors if name not in patterns]
    problems += [
        f"{name}: expected shape {tuple(patterns[name].shape)}, saw {tuple(t.shape)}"
        for name, t in saved.tensors.items()
        if name in patterns and tuple(patterns[name].shape) != tuple(t.shape)
    ]
    raise_all(problems, where=f"{where} does not fit the model")


def _check_files(folder: Path, expected: Mapping[str, str]) -> None:
    seen = {p.name for p in folder.iterdir() if p.name != FILE}
    problems = [f"{name}: expected, but missing" for name in expected if name not in seen]
    problems += [f"{name}: not expected" for name in sorted(seen) if name not in expected]
    problems += [
        f"{name}: expected a file name as ours, and no link"
        for name in expected
        if not _NAME.fullmatch(name) or (folder / name).is_symlink()
    ]
    raise_all(problems, where=str(folder), error=StoreError)
    for name in Ranks.current().share(sorted(expected)):
        if _digest(folder / name) != expected[name]:
            raise StoreError(f"{name}: expected the digest of what was written, saw another: the file is damaged")


def _digest(path: Path) -> str:
    return blake3(max_threads=torch.get_num_threads()).update_mmap(path).hexdigest(length=16)
