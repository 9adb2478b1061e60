"""Safetensors files: written atomically and without a copy in memory, and read as memory maps."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearnkit.utils.errors import StoreError
from unlearnkit.utils.files import atomic_write


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None, *, hint: str = ""
) -> None:
    """Write tensors to one safetensors file, atomically.

    Only these are copied: tensors on another device, non-contiguous ones, and those that share memory with others or
    with a larger tensor, which safetensors refuses.
    """
    with atomic_write(path) as temporary:
        try:
            save_file(_apart(tensors), temporary, dict(metadata) if metadata else None)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"cannot write {path}: {error}{hint}") from error


def load_tensors(path: str | Path, *, failure: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by name, mapped into memory, and the metadata; ``failure`` continues a message at the path."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise StoreError(f"{path}{failure}: {error}") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as safetensors needs them: on the CPU, contiguous, with no shared memory."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().to("cpu").contiguous()
        place = plain.untyped_storage().data_ptr()
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        apart[name] = plain if whole and place not in {0, *taken} else plain.clone()
        taken.add(place)
    return apart
