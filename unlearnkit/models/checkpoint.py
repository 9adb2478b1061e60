"""Checkpoints: weights and buffers in safetensors, loaded only when every name, shape and dtype fits."""

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnkit.distributed.sharded_tensors import refuse_sharded
from unlearnkit.models.parameters import COMPILED_PREFIX, digest_tensors
from unlearnkit.utils.errors import ConfigurationError, StoreError, raise_all
from unlearnkit.utils.safetensors import load_tensors, save_tensors

_PICKLE_MAGIC = (b"PK\x03\x04", b"\x80")  # what torch.save writes now, and what it wrote before 1.6
_PICKLE_SUFFIXES = {".pt", ".pth", ".pkl", ".bin"}
_WRAPPER = "module."  # of DataParallel and DistributedDataParallel
_DIGEST = "unlearnkit.digest"  # of the tensors in the file
REQUESTS = "unlearnkit.requests"
"""Key of a checkpoint's metadata: a JSON list of the digests of the forget sets that were applied to it."""
_DAMAGE = (
    *(pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What torch.load raises for a file that is damaged."""


def applied_requests(metadata: Mapping[str, str]) -> list[str]:
    """Return the digests of the forget sets that were applied to a checkpoint."""
    return [str(one) for one in json.loads(metadata.get(REQUESTS, "[]"))]


def save_checkpoint(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write all weights and persistent buffers to one safetensors file, atomically.

    Tied weights are written once, under their first name. Metadata that are not text are a `ConfigurationError`; a
    state that holds something else than tensors, or a file that cannot be written, is a `StoreError`.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> save_checkpoint(nn.Linear(2, 2), path, {"epochs": "5"})
        >>> load_checkpoint(nn.Linear(2, 2), path)
        {'epochs': '5'}
    """
    text = dict(metadata or {})
    problems = [
        f"{key!r}: expected text for key and value, saw {value!r}"
        for key, value in text.items()
        if not (isinstance(key, str) and isinstance(value, str))
    ]
    raise_all(problems, where="metadata", error=ConfigurationError)
    write_checkpoint(model_state(model), path, text)


def load_checkpoint(
    model: nn.Module, path: str | Path, *, allow_pickle: bool = False, undo: bool = True
) -> dict[str, str]:
    """Load weights and buffers into a model; nothing is loaded unless everything fits.

    The file is what `save_checkpoint` wrote, another safetensors file of a state dict or, with ``allow_pickle``, what
    ``torch.save(model.state_dict(), path)`` wrote, or a Lightning ``.ckpt``: allow that only for files you trust. For
    tied weights one name is enough. The prefix ``module.`` of DataParallel and DistributedDataParallel is added or
    taken away, and so is one that all names of the file have, such as ``model.`` of a LightningModule. Without
    ``undo`` the model is not copied first, and may be left half loaded by an interruption. Returns the metadata, none
    for a pickle.

    A file that is missing, damaged or a pickle that was not allowed is a `StoreError`; one that does not fit is a
    `MismatchError`, which lists every name, shape and dtype, and the model is unchanged.
    """
    found, metadata = read_checkpoint(path, allow_pickle=allow_pickle)
    state = _state(model)
    found, groups = _without_wrapper(found, state), _tied(state)
    raise_all(_problems(state, groups, found), where=f"{path} does not fit {type(model).__name__}")
    values = {name: next(found[n] for n in names if n in found) for names in groups for name in names}
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()} if undo else {}
    try:
        model.load_state_dict({key: values[key.replace(COMPILED_PREFIX, "")] for key in model.state_dict()})
    except BaseException:  # a module may have a loading hook of its own that fails half way
        if undo:
            model.load_state_dict(before, strict=False)
        raise
    return metadata


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by name, not copied: weights and persistent buffers, tied weights once."""
    state = _state(model)
    return {names[0]: state[names[0]].detach() for names in _tied(state)}


def write_checkpoint(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and metadata as a checkpoint, atomically."""
    save_tensors(state, path, {**(metadata or {}), _DIGEST: digest_tensors(state)})


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = {name.replace(COMPILED_PREFIX, ""): value for name, value in model.state_dict().items()}
    others = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    problems = [f"{name}: expected a tensor, saw {type(value).__name__}" for name, value in others.items()]
    raise_all(problems, where=f"the state of {type(model).__name__}", error=StoreError)
    instead = "save and load the model by torch.distributed.checkpoint"
    refuse_sharded(state.values(), who="a checkpoint", instead=instead)
    return state


def _without_wrapper(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the first part that all names of a file have and the model's have not; give the model's of DataParallel."""
    mine, theirs = ({f"{name.partition('.')[0]}." for name in names} for names in (state, found))
    bare = {name.partition(".")[2]: tensor for name, tensor in found.items()}
    if len(theirs) == 1 and mine != theirs and (theirs == {_WRAPPER} or not bare.keys().isdisjoint(state)):
        return bare
    return {_WRAPPER + name: tensor for name, tensor in found.items()} if mine == {_WRAPPER} != theirs else {**found}


def _tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    # Tensors without memory (empty, or on the meta device) are never tied.
    groups: dict[Any, list[str]] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        groups.setdefault(place if tensor.data_ptr() else name, []).append(name)
    return list(groups.values())


def _problems(state: Mapping[str, Tensor], groups: list[list[str]], found: Mapping[str, Tensor]) -> list[str]:
    problems = []
    for names in groups:
        present = [name for name in names if name in found]
        problems += [] if present else [f"{names[0]}: expected, but missing in the file"]
        problems += [p for name in present for p in _differences(name, state[name], found[name])]
        if any(not torch.equal(found[present[0]], found[name]) for name in present[1:]):
            problems.append(f"{', '.join(present)}: one tensor in the model, but different ones in the file")
    return problems + [f"{name}: in the file, but not in the model" for name in found if name not in state]


def _differences(name: str, expected: Tensor, seen: Tensor) -> list[str]:
    problems = []
    if expected.shape != seen.shape:
        problems.append(f"{name}: expected shape {tuple(expected.shape)}, saw {tuple(seen.shape)}")
    if expected.dtype != seen.dtype:
        problems.append(f"{name}: expected {expected.dtype}, saw {seen.dtype}: convert the model first")
    if expected.is_meta:
        problems.append(f"{name}: expected memory to load into, saw the meta device: use model.to_empty first")
    return problems


def read_checkpoint(file: str | Path, *, allow_pickle: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a checkpoint by name, and its metadata."""
    path = Path(file)
    if not path.is_file():
        raise StoreError(f"expected a checkpoint at {path}, saw {'a folder' if path.is_dir() else 'nothing'}")
    if not _is_pickle(path):
        return _read_safetensors(path)
    if not allow_pickle:
        raise StoreError(
            f"{path} is a pickle, which can run code when it is read: use allow_pickle=True (in a configuration "
            "model.allow_pickle = true) if you trust its maker"
        )
    return _read_pickle(path), {}


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{":  # the header of safetensors, after 8 bytes of length that may look like a pickle
        return False
    return head.startswith(_PICKLE_MAGIC) or path.suffix.lower() in _PICKLE_SUFFIXES


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = load_tensors(path, failure=" is damaged or not a safetensors file: save it again")
    if metadata.pop(_DIGEST, "") not in {"", digest_tensors(tensors)}:
        raise StoreError(f"{path}: expected the digest of what was written, saw another: the file is damaged")
    return {key.replace(COMPILED_PREFIX, ""): tensor for key, tensor in tensors.items()}, metadata


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # not the path: torch would go by a suffix .safetensors, not by the content
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise StoreError(
            f"{path} is damaged or holds more than weights, such as a whole model ({type(error).__name__}): save "
            "model.state_dict(), in safetensors best"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]  # of a Lightning .ckpt, and of many training scripts
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        keys = f" with the keys {list(loaded)[:5]}" if isinstance(loaded, Mapping) else ""
        raise StoreError(
            f"{path}: expected names and tensors, as model.state_dict() returns, saw {type(loaded).__name__}{keys}: "
            "save the state dict alone"
        )
    return {str(key).replace(COMPILED_PREFIX, ""): value for key, value in loaded.items()}
