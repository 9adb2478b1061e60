"""Compiles C++ on the user's machine and keeps the libraries in a folder that nobody else can write to.

`torch.utils.cpp_extension` needs ninja and torch's headers, takes half a minute instead of a second, and waits for ever
on the lock of a build that was killed.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

from unlearnkit import ConfigurationError
from unlearnkit.importance import KernelUnavailableError

_LOG = logging.getLogger("unlearnkit.cpu_kernels")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# By name and not -march=native: machines of several kinds may share the user's folder.
_INSTRUCTIONS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}
_SECONDS = 120.0  # for the compiler, which takes one or two
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

_loaded: dict[Path, ctypes.CDLL | ConfigurationError] = {}


def load(source: Path) -> ctypes.CDLL:
    """Load the library of a C++ file, compiled before or now; a failure is remembered for this process.

    Its ``extern "C"`` functions can be called by `ctypes`. OpenMP in it is torch's own: the same threads.
    """
    if source not in _loaded:
        try:
            _loaded[source] = _load(source)
        except ConfigurationError as error:
            _loaded[source] = error
    found = _loaded[source]
    if isinstance(found, ConfigurationError):
        raise found
    return found


def find_compiler() -> str | None:
    """Look for a C++ compiler."""
    wanted = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (wanted,) if wanted else ("c++", "g++", "clang++"))), None)


def cache_folder() -> Path:
    """Say where compiled libraries are kept."""
    if "UNLEARNKIT_CACHE" in os.environ:
        return Path(os.environ["UNLEARNKIT_CACHE"])
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise _unavailable(f"there is no home folder ({error})") from error
    if not base.is_absolute() or base.parent == Path("/"):  # HOME is empty, or names no folder of the user's own
        raise _unavailable(f"HOME={os.environ.get('HOME', '')!r} names no folder of the user's own")
    return base / "unlearnkit"


def _unavailable(why: str) -> KernelUnavailableError:
    return KernelUnavailableError(f"compiled kernels cannot be kept, {why}: set UNLEARNKIT_CACHE to a folder")


def _load(source: Path) -> ctypes.CDLL:
    text = source.read_bytes()
    built = cache_folder() / f"{source.stem}-{_key(text)}.so"
    try:
        if not _intact(built):
            _build(source.name, text, built)
            if not _intact(built):
                raise ConfigurationError(f"expected the library {built} as it was compiled, saw another content")
    except OSError as error:
        raise _unavailable(f"{built.parent} cannot be used ({error})") from error
    try:
        return ctypes.CDLL(str(built))
    except OSError as error:
        raise ConfigurationError(f"cannot load a compiled kernel ({error}): delete {built}") from error


def _key(text: bytes) -> str:
    flags = (*_flags(), platform.system(), platform.machine())
    return hashlib.sha256(text + "\0".join(flags).encode()).hexdigest()[:16]


def _flags() -> tuple[str, ...]:
    threads = () if platform.system() == "Darwin" else ("-fopenmp",)  # Apple's compiler has no OpenMP of its own
    return (*_FLAGS, *threads, *_INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability(), ()))


def _digest_of(built: Path) -> Path:
    return built.with_suffix(".sha256")


def _intact(built: Path) -> bool:
    """Say whether a library is there with the content that was compiled; refuse one that others may have written."""
    if not built.parent.is_dir():
        return False
    _refuse_foreign(built.parent)
    kept = [path for path in (built, _digest_of(built)) if os.path.lexists(path)]
    for path in kept:
        _refuse_foreign(path)
    if len(kept) < 2:
        return False
    if hashlib.sha256(built.read_bytes()).hexdigest() == _digest_of(built).read_text(encoding="ascii"):
        return True
    _LOG.info("%s is not as it was compiled: compiling it again", built)
    return False


def _refuse_foreign(path: Path) -> None:
    found = path.lstat()
    expected = "a folder" if stat.S_ISDIR(found.st_mode) else "a file"
    linked = stat.S_ISLNK(found.st_mode)
    wrong = [
        *(["a symbolic link"] if linked else []),
        *([f"owner {found.st_uid}"] if found.st_uid != os.geteuid() else []),
        *(["write access for others"] if found.st_mode & _OTHERS_MAY_WRITE and not linked else []),
    ]
    if wrong:
        raise ConfigurationError(
            f"expected {expected} that only user {os.geteuid()} can write to, saw {' and '.join(wrong)}: look at "
            f"{path}, delete it, or set UNLEARNKIT_CACHE to another folder"
        )


def _build(name: str, text: bytes, built: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        seen = f"CXX={os.environ['CXX']}, which is not found" if os.environ.get("CXX") else "none on the path"
        raise KernelUnavailableError(f"compiled kernels need a C++ compiler (c++, g++, clang++ or $CXX), saw {seen}")
    built.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_foreign(built.parent)
    built.parent.chmod(0o700)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        source, fresh = Path(folder) / name, Path(folder) / built.name
        source.write_bytes(text)
        _run([compiler, *_flags(), str(source), "-o", str(fresh)], Path(folder) / "said")
        fresh.chmod(0o600)
        digest = Path(folder) / "digest"
        digest.write_text(hashlib.sha256(fresh.read_bytes()).hexdigest(), encoding="ascii")
        for new, place in ((fresh, built), (digest, _digest_of(built))):
            _sync(new)
            new.replace(place)  # readers see all of it or nothing
    _sync(built.parent)


def _run(command: list[str], said: Path) -> None:
    """Run a compiler, whose own children end with it when it takes too long."""
    with (
        said.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            code = process.wait(_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(f"{' '.join(command)} took more than {_SECONDS:g} seconds") from error
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        text = said.read_text(encoding="utf-8", errors="replace").strip()
        raise ConfigurationError(f"{' '.join(command)} failed:\n{text[-2000:]}")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
