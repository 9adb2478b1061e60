"""Safe unpickling of numbers, text, lists, dicts and numpy arrays."""

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from typing_extensions import override

from unlearnkit.utils.errors import StoreError


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # How Python 3 writes bytes into an old pickle; the codec registry also holds decompressors, which stay out.
    if encoding != "latin1":
        raise StoreError(f"expected bytes encoded as latin1 in a pickle, saw {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    # How protocols before 3 write b"": bytes(). With an argument it could allocate any amount of memory.
    return b""


# From numpy itself: the module of these functions has another name in each major version.
_RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]
_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
}
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error)


@final
class _PlainUnpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            raise StoreError(
                f"refused a pickle that asks for {module}.{name}: expected numbers, text, lists, dicts and numpy "
                "arrays only; a file that asks for more can run any code, so get it from somewhere else"
            )
        return allowed


def load_plain_pickle(path: Path) -> Any:
    """Read a pickle without running anything that it asks for."""
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    except _DAMAGE as error:
        raise StoreError(f"{path} is damaged or not a pickle: {error}: get the file again") from error
    except StoreError as error:
        raise StoreError(f"{path}: {error}") from error
