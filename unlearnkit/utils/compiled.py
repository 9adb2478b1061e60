"""C++ that is compiled on the user's machine when it is first asked for, and kept.

`torch.utils.cpp_extension` would do, but needs ninja and torch's headers, takes half a minute instead of a second,
and waits for ever on the lock of a build that was killed.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from unlearnkit.utils.errors import ConfigurationError, UnlearnKitWarning

_LOG = logging.getLogger(__name__)
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# By name and not -march=native: the folder of a user may be shared by machines of several kinds.
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


@functools.cache
def load(source: Path, *, before: str = "", flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Compile a C++ file, unless that has been done before, and load it.

    Its ``extern "C"`` functions can be called by `ctypes`. OpenMP in it is torch's own: the same threads.
    """
    text = before + source.read_text(encoding="utf-8")
    flags = (*_flags(), *flags)
    built = cache_folder() / f"{source.stem}-{_digest(text, flags)}.so"
    if not built.exists():
        _build(source.name, text, flags, built)
    try:
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise ConfigurationError(
            f"cannot load a compiled kernel ({error}): delete {built}, or set UNLEARNKIT_CACHE to another folder"
        ) from error


@functools.cache
def source_text(path: Path) -> str:
    """Read a part of a source of this package, once."""
    return path.read_text(encoding="utf-8")


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what was written there is then in the cache folder, all of it at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            fresh = Path(folder) / path.name
            yield fresh
            fresh.replace(path)  # others see all of it or nothing
    except OSError as error:
        raise ConfigurationError(
            f"cannot keep a compiled kernel in {path.parent} ({error}): set UNLEARNKIT_CACHE to a folder"
        ) from error


def find_compiler() -> str | None:
    """Look for a C++ compiler."""
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (wanted,) if wanted else ("c++", "g++", "clang++"))), None)


def go_on_without(said: str, error: ConfigurationError) -> None:
    """Log that the slower path is taken; warn when a compiler exists but failed."""
    if find_compiler() is None:
        _LOG.info("%s: %s", said, error)
    else:
        _warn_once(f"{said}: {error}")


def cache_folder() -> Path:
    """Say where compiled libraries are kept."""
    if "UNLEARNKIT_CACHE" in os.environ:
        return Path(os.environ["UNLEARNKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearnkit"


@functools.cache
def _warn_once(sentence: str) -> None:
    warnings.warn(sentence, UnlearnKitWarning, stacklevel=5)


def _flags() -> tuple[str, ...]:
    threads = () if platform.system() == "Darwin" else ("-fopenmp",)  # Apple's compiler has no OpenMP of its own
    return (*_FLAGS, *threads, *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))


def _digest(text: str, flags: tuple[str, ...]) -> str:
    seen = (text, *flags, platform.system(), platform.machine())
    return hashlib.sha256("\0".join(seen).encode()).hexdigest()[:16]


def _build(name: str, text: str, flags: tuple[str, ...], built: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        seen = f"CXX={os.environ['CXX']}, which is not found" if os.environ.get("CXX") else "none on the path"
        raise ConfigurationError(f"compiled kernels need a C++ compiler (c++, g++, clang++ or $CXX), saw {seen}")
    with kept(built) as fresh:
        source = fresh.with_name(name)
        source.write_text(text, encoding="utf-8")
        _run([compiler, *flags, str(source), "-o", str(fresh)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigurationError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
