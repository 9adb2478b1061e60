"""Batches, any nesting of tuples, lists, mappings and dataclasses of tensors, and their way to the device."""

import copy
import dataclasses
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from itertools import chain, pairwise
from typing import Any, TypeVar, cast, final

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from unlearnkit.utils.errors import ConfigurationError, MismatchError
from unlearnkit.utils.progress import length

_DIGEST_ELEMENTS = 4096
_QUEUED = 2  # batches that wait on the device: it never idles, and they do not fill its memory

# Usual names of fields, for advice in messages.
_TARGETS = ("labels", "label", "targets", "target", "y")
_TEXTS = ("input_ids", "attention_mask", "token_type_ids")
_IMAGES = ("pixel_values", "image", "images", "inputs", "input", "x")

T = TypeVar("T")


@final
@attrs.frozen(kw_only=True, eq=False)
class Deferred:
    """Raw data of one sample, or collated of a batch, with a function that `to_device` applies to a whole batch."""

    raw: Tensor
    finish: Callable[[Tensor], Tensor]

    def pin_memory(self) -> "Deferred":
        """Copy to pinned memory; data loaders call it."""
        return Deferred(raw=self.raw.pin_memory(), finish=self.finish)

    @classmethod
    def collate(cls, samples: Sequence["Deferred"], **options: Any) -> "Deferred":
        """Stack samples; data loaders call it."""
        shapes = sorted({tuple(sample.raw.shape) for sample in samples})
        if len(shapes) > 1:
            raise MismatchError(
                f"samples that are finished on the device must have one shape, saw {shapes}: use on_device=False"
            )
        raw: Tensor = collate([sample.raw for sample in samples], collate_fn_map=options["collate_fn_map"])
        return cls(raw=raw, finish=samples[0].finish)


# Documented by torch for custom types: every data loader can collate them.
default_collate_fn_map[Deferred] = Deferred.collate


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor of a nested batch and keep the nesting."""
    return _map(batch, _is_tensor, function)


def _map(batch: Any, leaf: Callable[[Any], bool], function: Callable[[Any], Any]) -> Any:  # noqa: PLR0911 - one return a kind
    if leaf(batch):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(item, leaf, function) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_map(item, leaf, function) for item in batch)
    if isinstance(batch, Mapping):
        mapped = {key: _map(item, leaf, function) for key, item in batch.items()}
        if isinstance(batch, MutableMapping):
            changed = copy.copy(batch)  # keeps what its class needs to be made: a defaultdict's factory, say
            changed.update(mapped)
            return changed
        return type(batch)(mapped)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **{k: _map(v, leaf, function) for k, v in fields.items()})
    if attrs.has(type(batch)):
        fields = {f.alias: getattr(batch, f.name) for f in attrs.fields(type(batch)) if f.init}
        return attrs.evolve(batch, **{k: _map(v, leaf, function) for k, v in fields.items()})
    return batch


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nested batch, in order."""
    found: list[Tensor] = []

    def collect(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, collect)
    yield from found


def batch_size(batch: Any) -> int:
    """Return the number of samples: the length of dimension 0, which every tensor must share."""
    shapes = [tuple(tensor.shape) for tensor in tensors(batch)]
    if not shapes:
        raise MismatchError(
            f"a batch must hold at least one tensor, saw {type(batch).__name__} without any: check your data loader"
        )
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise MismatchError(
            f"every tensor of a batch must have the same length in dimension 0 (the samples), saw shapes {shapes}: "
            "check the collate function of your data loader"
        )
    size = shapes[0][0]
    if size == 0:
        raise MismatchError("a batch must hold at least one sample, saw 0: drop empty batches from your data loader")
    return size


def check_batches(batches: Any, *, what: str) -> None:
    """Refuse a data set of single samples where batches are expected."""
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise ConfigurationError(
            f"{what}: expected batches, saw the data set {type(batches).__name__}: pass "
            "unlearnkit.data.loader(data, batch_size=…)"
        )


def lost_samples(batches: Any) -> str:
    """Say how a data loader leaves out or repeats samples; "" when each is read once, as far as can be known."""
    if not isinstance(batches, DataLoader):
        return ""
    sampler: Any = getattr(batches.batch_sampler, "sampler", batches.sampler)
    found = ""
    drawn, size = length(sampler), getattr(batches.batch_sampler, "batch_size", batches.batch_size) or 1
    if isinstance(batches.batch_sampler, list | tuple):
        sampler = list(chain.from_iterable(batches.batch_sampler))
        drawn = len(sampler)
    whole, sized = _drawn_from(sampler), cast("Sized", batches.dataset)
    if isinstance(batches.dataset, IterableDataset):
        if batches.num_workers > 1:
            found = f"{batches.num_workers} workers read a stream, each of them perhaps all of it: use num_workers=1"
        elif batches.drop_last:
            found = f"drop_last leaves out up to {size - 1} samples of a stream"
    elif getattr(sampler, "replacement", False):
        found = f"{drawn} of {len(sized)} samples are drawn with replacement: some often, some not at all"
    elif getattr(sampler, "num_replicas", 1) > 1:
        found = f"the sampler reads the part of one of {sampler.num_replicas} processes"
    elif drawn is not None and drawn != whole:
        found = f"the sampler draws {drawn} times from {whole} samples"
    elif drawn and drawn % size and getattr(batches.batch_sampler, "drop_last", False):
        found = f"drop_last leaves out {drawn % size} of {drawn} samples"
    elif isinstance(batches.dataset, Subset) and _different(batches.dataset.indices) < len(sized):
        found = f"the Subset lists {len(sized)} samples, {_different(batches.dataset.indices)} of them different"
    return found


def _drawn_from(sampler: Any) -> int | None:
    """Count the samples that a sampler can draw."""
    if isinstance(sampler, list | tuple):
        return _different(sampler)
    if isinstance(sampler, SubsetRandomSampler):
        return _different(sampler.indices)
    return length(getattr(sampler, "data_source", getattr(sampler, "weights", sampler)))


def _different(indices: Iterable[Any]) -> int:
    return len({int(i) if isinstance(i, Tensor) else i for i in indices})


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor to a device, without waiting for copies from pinned memory, and apply `Deferred` functions."""
    moved = map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))
    return _map(moved, lambda item: isinstance(item, Deferred), lambda item: item.finish(item.raw))


def take(batch: Any, rows: slice | Tensor) -> Any:
    """Return some samples of a batch: views for a slice, copies for indices.

    A numpy array, or a list or tuple without tensors, of the batch's length holds one value for each sample. Any other
    value that is not a tensor belongs to the whole batch.
    """
    return _map_samples(batch, lambda item: _some(item, rows))


def joined(batches: Sequence[Any]) -> Any:
    """Concatenate what holds one value for each sample (see `take`); anything else is that of the first batch."""
    rows = [_values(batch) for batch in batches]
    kinds = dict.fromkeys(", ".join(map(_kind, row)) for row in rows)
    if len(kinds) > 1:
        raise MismatchError(
            f"expected batches that hold the same for each of their n samples, saw {'; and '.join(kinds)} (a list or "
            "tuple as long as the batch is read as one value for each sample)"
        )
    columns = zip(*rows, strict=True)
    return _map_samples(batches[0], lambda _: _concatenated(next(columns)))


def has_values(batch: Any) -> bool:
    """Say whether a batch holds a value for each sample that is not in a tensor; see `take`."""
    return not all(map(_is_tensor, _values(batch)))


def _values(batch: Any) -> list[Any]:
    found: list[Any] = []
    _map_samples(batch, found.append)
    return found


def _map_samples(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to whatever holds one value for each sample; see `take`."""
    size = batch_size(batch)
    return _map(batch, lambda item: _is_tensor(item) or _one_each(item, size), function)


def _is_tensor(item: Any) -> bool:
    return isinstance(item, Tensor)


def _one_each(item: Any, size: int) -> bool:
    """Say whether something holds one plain value for each sample."""
    if isinstance(item, np.ndarray):
        return item.ndim > 0 and len(item) == size
    if not isinstance(item, tuple | list) or hasattr(item, "_fields") or len(item) != size:
        return False
    return next(tensors(item), None) is None


def _kind(item: Any) -> str:
    if not isinstance(item, Tensor | np.ndarray):
        return type(item).__name__
    shape = ", ".join(map(str, ("n", *item.shape[1:])))
    return f"{'Tensor' if _is_tensor(item) else 'array'} ({shape})"


def _some(item: Any, rows: slice | Tensor) -> Any:
    if isinstance(item, Tensor) or isinstance(rows, slice):
        return item[rows]
    return item[rows.cpu().numpy()] if isinstance(item, np.ndarray) else type(item)(item[i] for i in rows.tolist())


def _concatenated(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat([*parts])
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else type(parts[0])(chain.from_iterable(parts))


def pick(batch: Any, where: int | str, *, what: str) -> Any:
    """Take one field out of a batch, by position in a sequence or by key or attribute."""
    if isinstance(batch, Tensor):
        raise ConfigurationError(
            f"expected a batch with the {what} at {where!r}, saw a tensor: pass a list of batches, [(inputs, labels)]"
        )
    seen = f"a {type(batch).__name__}"
    if isinstance(batch, Mapping):
        if isinstance(where, str) and where in batch:
            return batch[where]
        seen += f" with the keys {sorted(map(str, batch))}"
    elif isinstance(where, int) and isinstance(batch, tuple | list):
        if -len(batch) <= where < len(batch):
            return batch[where]
        seen += f" of {len(batch)} fields"
    elif isinstance(where, str) and not callable(getattr(batch, where, len)):
        return getattr(batch, where)
    raise ConfigurationError(
        f"expected the {what} of a batch at {where!r}, saw {seen}: say where they are, for example {_example(batch)}"
    )


def _example(batch: Any) -> str:
    """Name an objective for a batch, by the usual names of its fields."""
    keys = [*map(str, batch)] if isinstance(batch, Mapping) else []
    targets = next((key for key in _TARGETS if key in keys), None)
    texts = tuple(key for key in _TEXTS if key in keys)
    if texts and (targets is None or np.shape(batch[targets]) == np.shape(batch[texts[0]])):
        return "CausalLanguageModel()"
    others = [key for key in keys if key != targets]
    if not others or targets is None:
        return "CrossEntropy(inputs='image', targets='label')"
    inputs = texts if len(texts) > 1 else next((key for key in (*texts, *_IMAGES) if key in keys), others[0])
    return f"CrossEntropy(inputs={inputs!r}, targets={targets!r})"


def digest(batch: Any) -> bytes:
    """Hash the sizes and some values of a batch, so that another order of the data gives another digest."""
    state = hashlib.blake2b(digest_size=16)
    for tensor in tensors(batch):
        plain = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        flat = plain.reshape(-1)
        some = flat[:: max(1, math.ceil(flat.numel() / _DIGEST_ELEMENTS))].to("cpu", torch.float64)
        state.update(repr(tuple(tensor.shape)).encode())
        state.update(some.contiguous().numpy().tobytes())
    return state.digest()


def feed(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Any]]:
    """Yield every batch as the loader returned it, and on the model's device (see `to_device`).

    On CUDA the next batch is fetched and its copy started on a separate stream before the last one is yielded: an error
    while it is fetched is raised one batch early. The host runs at most two batches ahead of the device.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch, to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead = fetch_ahead(_copied(batch, device, stream) for batch in batches)
    for batch, moved, ready in limit_queue(ahead, lambda: torch.cuda.current_stream(device).record_event()):
        now = torch.cuda.current_stream(device)
        now.wait_event(ready)
        for tensor in tensors(moved):
            tensor.record_stream(now)  # or the allocator could reuse the memory while this stream reads it
        yield batch, moved


def limit_queue(items: Iterable[T], mark: Callable[[], Any], *, queued: int = _QUEUED) -> Iterator[T]:
    """Yield items, record an event after each, and wait when the device is more than ``queued`` items behind."""
    marks: deque[Any] = deque()
    for item in items:
        yield item
        marks.append(mark())
        if len(marks) > queued:
            marks.popleft().synchronize()


def fetch_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield each item after the next one has been fetched."""
    for item, _ in pairwise(chain(items, [None])):
        yield item


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Start a copy to a device without waiting for it."""
    return (_pinned(tensor) if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _copied(batch: Any, device: torch.device, stream: torch.cuda.Stream) -> tuple[Any, Any, torch.cuda.Event]:
    # Earlier kernels may still be writing what is copied, or reading the memory that is reused.
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        moved = to_device(map_tensors(batch, _pinned), device)
        return batch, moved, stream.record_event()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" and not tensor.is_pinned() else tensor
